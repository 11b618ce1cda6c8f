import io
import json
import sys
from pathlib import Path

import pytest

from store.tiny import make_plan, write_store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_store(tmp_path / "full")
    write_store(tmp_path / "some", make_plan([0, 1]))
    return tmp_path


class Typist(io.StringIO):
    """A terminal at which somebody has typed."""

    def isatty(self) -> bool:
        return True


def test_list_shows_state_and_completeness(coterie, folder: Path) -> None:
    outcome = coterie("stores", "--root", str(folder))
    assert outcome.code == 0
    rows = {line.split()[0]: line.split()[1:] for line in outcome.out.splitlines()}
    assert rows["full"][:2] == ["complete", "17/17"]
    assert rows["some"][:2] == ["partial", "6/17"]
    assert f"2 in {folder}" in outcome.err


def test_json(coterie, folder: Path) -> None:
    found = json.loads(coterie("stores", "list", "--root", str(folder), "--json").out)
    assert found["schema_version"] == 1
    assert found["folder"] == str(folder)
    assert [(store["name"], store["state"]) for store in found["stores"]] == [("full", "complete"), ("some", "partial")]


def test_the_default_folder_is_used(coterie, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "stores").mkdir()
    write_store(folder / "stores" / "mine")
    monkeypatch.setenv("COTERIE_HOME", str(folder))
    assert "mine" in coterie("stores").out


def test_an_empty_folder_says_how_to_make_a_store(coterie, tmp_path: Path) -> None:
    outcome = coterie("stores", "--root", str(tmp_path))
    assert (outcome.code, outcome.out) == (0, "")
    assert "coterie extract" in outcome.err


def test_damage_is_shown(coterie, folder: Path) -> None:
    (folder / "full" / "config.json").unlink()
    outcome = coterie("stores", "--root", str(folder))
    assert "damaged" in outcome.out
    assert "config.json" in outcome.err


def test_remove_with_yes(coterie, folder: Path) -> None:
    outcome = coterie("stores", "remove", "full", "--root", str(folder), "--yes")
    assert outcome.code == 0
    assert f"Removed {folder / 'full'}" in outcome.err
    assert [path.name for path in folder.iterdir()] == ["some"]


def test_remove_prints_json(coterie, folder: Path) -> None:
    outcome = coterie("stores", "remove", "full", "--root", str(folder), "-y", "--json")
    assert json.loads(outcome.out)["removed"]["path"] == str(folder / "full")


@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, ["some"]), ("n", 1, ["full", "some"])])
def test_remove_asks(
    coterie, folder: Path, monkeypatch: pytest.MonkeyPatch, answer: str, code: int, left: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Typist(answer + "\n"))
    outcome = coterie("stores", "remove", "full", "--root", str(folder))
    assert outcome.code == code
    assert sorted(path.name for path in folder.iterdir()) == left


def test_remove_without_anybody_to_ask_wants_yes(coterie, folder: Path) -> None:
    outcome = coterie("stores", "remove", "full", "--root", str(folder))
    assert outcome.code == 2
    assert "--yes" in outcome.err
    assert (folder / "full").exists()


def test_remove_of_nothing_known_suggests(coterie, folder: Path) -> None:
    outcome = coterie("stores", "remove", "fill", "--root", str(folder), "-y")
    assert outcome.code == 1
    assert "Did you mean 'full'?" in outcome.err


@pytest.mark.parametrize("arguments", [("remove",), ("list", "full"), ("delete", "full")])
def test_wrong_usage(coterie, folder: Path, arguments: tuple[str, ...]) -> None:
    assert coterie("stores", *arguments, "--root", str(folder)).code == 2
    assert (folder / "full").exists()


def test_edited_small_files_are_taken_over(coterie, zoo_store, tmp_path) -> None:
    import shutil

    store = tmp_path / "mine"
    shutil.copytree(zoo_store("qwen3_moe"), store)
    (store / "chat_template.jinja").write_text("{{ messages }}")
    outcome = coterie("stores", "refresh", "mine", "--root", str(tmp_path))
    assert (outcome.code, outcome.err.strip()) == (0, "chat_template.jinja: new")
    assert "has the files that it knows" in coterie("stores", "refresh", str(store)).err
    assert coterie("stores", "refresh").code == 2
