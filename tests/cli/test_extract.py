import json
import re
from pathlib import Path

import pytest
import torch


@pytest.fixture
def moe(zoo_checkpoint) -> str:
    return str(zoo_checkpoint("qwen3_moe", torch.bfloat16))


def test_extract_then_grow_then_nothing_to_do(coterie, moe: str, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    first = coterie("extract", moe, store, "--experts", "0-3")
    assert first.code == 0
    assert f"Wrote {store}" in first.out
    assert "8 of 16 experts" in first.out
    grown = coterie("extract", moe, store)
    assert f"Grew {store}" in grown.out
    assert "all 16 experts" in grown.out
    again = coterie("extract", moe, store)
    assert again.code == 0
    assert "has all of this already; nothing was written" in again.out


def test_dry_run_lists_files_and_disk(coterie, moe: str, tmp_path: Path) -> None:
    outcome = coterie("extract", moe, str(tmp_path / "store"), "--dry-run")
    assert outcome.code == 0
    for text in ("dense.safetensors", "experts/text/mlp-layer-001.safetensors", "disk needed", "disk free"):
        assert text in outcome.out
    assert not (tmp_path / "store").exists()


def test_a_large_store_is_told_what_four_bits_take(coterie, moe: str, tmp_path: Path, monkeypatch) -> None:
    from coterie.extraction import extraction

    monkeypatch.setattr(extraction, "LARGE_NBYTES", 1)
    for arguments in (("--dry-run",), ()):
        outcome = coterie("extract", moe, str(tmp_path / "store"), *arguments)
        assert outcome.err.count("--scheme int4 --dense-scheme int4") == 1
    assert "int4" not in coterie("extract", moe, str(tmp_path / "store")).err
    assert "int4" not in coterie("extract", moe, str(tmp_path / "other"), "--scheme", "native").err


def test_schemes_by_part(coterie, moe: str, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    made = coterie("extract", moe, store, "--dense-scheme", "attention=int8,rest=int4")
    assert "Linear layers outside experts: attention int8, head int4." in made.out
    assert coterie("verify", store, "--against", moe).code == 0
    shown = coterie("inspect", store).out
    assert "linear layers in one scheme for each part (below)" in shown
    assert re.search(r"^attention +\S+ \S+ +int8 .*, native ", shown, re.MULTILINE)
    assert re.search(r"^head +\S+ \S+ +int4 *$", shown, re.MULTILINE)
    found = json.loads(coterie("inspect", store, "--json").out)
    assert found["dense_scheme"] == "attention=int8,head=int4"
    schemes = {part["part"]: set(part["schemes"]) for part in found["dense_parts"]}
    assert (schemes["attention"], schemes["head"]) == ({"int8", "native"}, {"int4"})
    planned = coterie("extract", moe, str(tmp_path / "other"), "--dense-scheme", "attention=int8", "--dry-run")
    assert "attention=int8,head=native" in planned.out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("attn=int8", "Valid: 'attention', "),
        ("attention=int44", "Did you mean 'int4'?"),
        ("routers=int8", "they decide which experts compute"),
        ("mlp=int8", "It has: 'attention', 'head'."),
    ],
)
def test_schemes_of_parts_that_there_are_not(given: str, told: str, coterie, moe: str, tmp_path: Path) -> None:
    outcome = coterie("extract", moe, str(tmp_path / "store"), "--dense-scheme", given)
    assert outcome.code == 2
    assert told in outcome.err
    assert not (tmp_path / "store").exists()


def test_json(coterie, moe: str, tmp_path: Path) -> None:
    outcome = coterie("extract", moe, str(tmp_path / "store"), "--experts", "1", "--layers", "0", "--json")
    found = json.loads(outcome.out)
    assert (found["schema_version"], found["status"], found["experts_present"]) == (1, "written", 9)
    assert found["complete"] is False
    assert {file["file"] for file in found["files"]} >= {"config.json", "coterie.json", "dense.safetensors"}


def test_layers_without_experts_is_wrong_usage(coterie, moe: str, tmp_path: Path) -> None:
    outcome = coterie("extract", moe, str(tmp_path / "store"), "--layers", "0")
    assert outcome.code == 2
    assert "depth of a model is never cut" in outcome.err


def test_ctrl_c_says_how_to_go_on(coterie, moe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coterie.extraction.copying import Copier

    def interrupt(self: Copier) -> None:
        raise KeyboardInterrupt

    store = str(tmp_path / "store")
    with monkeypatch.context() as patched:
        patched.setattr(Copier, "run", interrupt)
        outcome = coterie("extract", moe, store)
    assert outcome.code == 130
    assert f"What is finished is kept in {store}; the same command goes on from there" in outcome.err
    assert f"Finished {store}" in coterie("extract", moe, store).out


def test_a_scheme_is_stored_kept_and_shown(coterie, moe: str, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    assert coterie("extract", moe, store, "--experts", "0-3", "--scheme", "int4").code == 0
    assert coterie("extract", moe, store).code == 0
    shown = json.loads(coterie("inspect", store, "--json").out)
    assert {tuple(bank["schemes"].items()) for bank in shown["banks"]} == {(("int4", 8),)}
    assert coterie("verify", store, "--against", moe).code == 0


def test_an_unknown_scheme_names_the_nearest(coterie, moe: str, tmp_path: Path) -> None:
    outcome = coterie("extract", moe, str(tmp_path / "store"), "--scheme", "int44")
    assert outcome.code == 2
    assert "int4" in outcome.err
