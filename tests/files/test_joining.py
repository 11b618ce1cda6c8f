"""A whole model of two parts of the package."""

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from coterie.errors import OutputError
from coterie.files.joining import joined


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A thinker and the rest, with a few tensors each; the cache is a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    thinker, rest = tmp_path / "thinker", tmp_path / "whole"
    thinker.mkdir()
    rest.mkdir()
    save_file({"b": torch.arange(5.0), "a": torch.ones(3, dtype=torch.bfloat16)}, thinker / "model.safetensors")
    save_file({"talker.x": torch.arange(7).float(), "code2wav.y": torch.zeros(2)}, rest / "talker.safetensors")
    for folder in (thinker, rest):
        (folder / "config.json").write_text(json.dumps({"of": folder.name}))
        (folder / "README.md").write_text("A card.")
    (thinker / "tokenizer.json").write_text("{}")
    (rest / "chat_template.jinja").write_text("{{ messages }}")
    return thinker, rest


def test_it_has_the_tensors_of_both_and_the_small_files(parts: tuple[Path, Path]) -> None:
    whole = joined(*parts)
    tensors = load_file(whole / "model.safetensors")
    assert tensors.keys() == {"thinker.a", "thinker.b", "talker.x", "code2wav.y"}
    assert torch.equal(tensors["thinker.b"], torch.arange(5.0))
    assert torch.equal(tensors["thinker.a"], torch.ones(3, dtype=torch.bfloat16))
    assert torch.equal(tensors["talker.x"], torch.arange(7).float())
    files = {path.name for path in whole.iterdir()}
    assert files == {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"}
    assert json.loads((whole / "config.json").read_text()) == {"of": "whole"}


def test_other_parts_are_another_directory_and_the_first_one_stays(parts: tuple[Path, Path]) -> None:
    before = joined(*parts)
    save_file({"talker.x": torch.zeros(7), "code2wav.y": torch.zeros(2)}, parts[1] / "talker.safetensors")
    after = joined(*parts)
    assert after != before
    assert load_file(before / "model.safetensors")["talker.x"][6] == 6
    assert load_file(after / "model.safetensors")["talker.x"][6] == 0


def test_several_at_once_make_one(parts: tuple[Path, Path], tmp_path: Path) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(joined(*parts))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert [path.name for path in (tmp_path / "cache/coterie/joined").iterdir()] == [found[0].parent.name]


def test_what_was_left_half_done_is_not_taken_for_whole(
    parts: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        with pytest.raises(OutputError, match="No space left on device") as caught:
            joined(*parts)
    assert "XDG_CACHE_HOME" in str(caught.value)
    assert list((tmp_path / "cache/coterie/joined").iterdir()) == []
    assert (joined(*parts) / "model.safetensors").is_file()


def test_a_folder_that_cannot_be_made_is_said(
    parts: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="cannot be written"):
        joined(*parts)
