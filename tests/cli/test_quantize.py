import json
from pathlib import Path

import pytest
import torch

from coterie.checkpoint import Checkpoint
from extraction.profiles import recorded


@pytest.fixture
def native(zoo_store) -> str:
    return str(zoo_store("qwen3_moe", torch.bfloat16, experts="0-3"))


def test_a_smaller_store_is_made_and_shown(coterie, native: str, tmp_path: Path) -> None:
    store = str(tmp_path / "small")
    outcome = coterie("quantize", native, store, "--scheme", "int4", "--dense-scheme", "int8")
    assert outcome.code == 0
    assert f"Wrote {store}" in outcome.out
    assert "8 of 16 experts" in outcome.out
    shown = coterie("inspect", store)
    assert "int4" in shown.out
    assert "linear layers in int8" in " ".join(shown.out.split())
    found = json.loads(coterie("inspect", store, "--json").out)
    assert found["dense_scheme"] == "int8"
    assert coterie("verify", store).code == 0


def test_dry_run_and_json(coterie, native: str, tmp_path: Path) -> None:
    outcome = coterie("quantize", native, str(tmp_path / "small"), "--scheme", "int8", "--dry-run")
    assert outcome.code == 0
    assert "disk needed" in outcome.out
    report = json.loads(coterie("quantize", native, str(tmp_path / "small"), "--scheme", "int8", "--json").out)
    assert report["status"] == "written"


def test_without_a_scheme_it_is_wrong_usage(coterie, native: str, tmp_path: Path) -> None:
    outcome = coterie("quantize", native, str(tmp_path / "small"))
    assert outcome.code == 2
    assert "--scheme int4" in outcome.err


def test_extract_takes_a_dense_scheme(coterie, zoo_checkpoint, tmp_path: Path) -> None:
    moe = str(zoo_checkpoint("qwen3_moe", torch.bfloat16))
    store = str(tmp_path / "store")
    assert coterie("extract", moe, store, "--dense-scheme", "int4").code == 0
    assert coterie("verify", store, "--against", moe).code == 0
    wrong = coterie("extract", moe, store, "--dense-scheme", "int7")
    assert wrong.code == 2
    assert "int4" in wrong.err


def test_bits_within_a_budget(coterie, zoo_checkpoint, tmp_path: Path) -> None:
    moe = zoo_checkpoint("qwen3_moe", torch.bfloat16)
    profile = tmp_path / "p.db"
    everybody = {("text", "code"): [(e, 1.0 + e, 80) for e in range(4)], ("text", "prose"): [(7, 3.0, 90)]}
    recorded(profile, Checkpoint.open(moe), everybody)
    store = str(tmp_path / "store")
    options = ("--profile", str(profile), "--bits", "4")
    shown = coterie("extract", str(moe), store, *options, "--dry-run")
    assert shown.code == 0
    rows = [line.split() for line in shown.out.splitlines()]
    assert any(row[:1] == ["allocation"] for row in rows)
    assert sum(row[-1:] == ["gate_up_proj"] or "gate_up_proj" in row for row in rows) == 2
    assert "if all experts were of equal size" in " ".join(shown.out.split())
    assert not Path(store).exists()
    options = ("--profile", str(profile), "--bits", "2", "--for", "code")
    made = coterie("quantize", str(moe), store, *options, "--json")
    assert made.code == 0
    allocation = json.loads(made.out)["allocation"]["facts"]
    assert (allocation["criterion"], allocation["domains"]) == ("energy", ["code"])
    assert "--missing mask" in coterie("quantize", str(moe), store, *options).out
    inspected = coterie("inspect", store)
    assert "per weight" in inspected.out
    assert "text of code" in inspected.out
    assert json.loads(coterie("inspect", store, "--json").out)["allocation"]["bits"] <= 2000
    planned = coterie("plan", store, "--memory", "2GiB")
    assert planned.code == 0, planned.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bits", "4"), "coterie profile record"),
        (("--expert-bytes", "1GiB"), "coterie profile record"),
        (("--for", "code"), "Add --bits"),
        (("--bits", "4", "--profile", "p.db", "--for", ","), "names no domain"),
        (("--bits", "4", "--profile", "p.db", "--scheme", "int4"), "Leave out --scheme"),
    ],
)
def test_what_bits_do_not_go_with(coterie, native: str, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    for command in ("quantize", "extract"):
        outcome = coterie(command, native, str(tmp_path / "store"), *options)
        assert outcome.code == 2
        assert message in " ".join(outcome.err.split())
    assert coterie("quantize", native, str(tmp_path / "store"), "--modality", "text").code == 2


def test_a_file_gives_each_matrix_a_scheme(coterie, native: str, tmp_path: Path) -> None:
    experts = {"text/mlp-layer-000/00001": {"gate_up_proj": "int2", "down_proj": "int4"}}
    (tmp_path / "chosen.json").write_text(json.dumps({"schema_version": 1, "rest": "int3", "experts": experts}))
    options = ("--expert-schemes", str(tmp_path / "chosen.json"))
    assert coterie("quantize", native, str(tmp_path / "store"), *options).code == 0
    assert "int2+int4" in coterie("inspect", str(tmp_path / "store")).out
    both = coterie("quantize", native, str(tmp_path / "other"), *options, "--scheme", "int4")
    assert both.code == 2
    assert "leave out --scheme" in both.err


def test_codes_are_calibrated(coterie, readable: Path, tmp_path: Path) -> None:
    text = tmp_path / "words.txt"
    text.write_text(" ".join(f"w{number % 60 + 3}" for number in range(200)))
    store = str(tmp_path / "small")
    asked = ("quantize", str(readable), store, "--scheme", "int4", "--calibrate", f"code={text}")
    assert coterie(*asked, "--calibration-tokens", "150", "--memory", "4GiB").code == 0
    manifest = json.loads((tmp_path / "small" / "coterie.json").read_text())
    assert manifest["calibration"]["tokens"] == {"code": 150}
    assert "codes chosen over 150 tokens: code 150" in " ".join(coterie("inspect", store).out.split())
    assert json.loads(coterie("inspect", store, "--json").out)["calibration"]["tokens"] == {"code": 150}
    assert coterie("verify", store, "--against", str(readable)).code == 0


def test_codes_are_calibrated_with_what_comes_with_the_package(coterie, readable: Path, tmp_path: Path) -> None:
    text = tmp_path / "words.txt"
    text.write_text(" ".join(f"w{number % 60 + 3}" for number in range(200)))
    store = str(tmp_path / "small")
    asked = (
        "quantize",
        str(readable),
        store,
        "--scheme",
        "int4",
        "--calibrate",
        "default",
        "--calibrate",
        f"own={text}",
    )
    outcome = coterie(*asked, "--calibration-tokens", "300", "--memory", "4GiB")
    assert outcome.code == 0, outcome.err
    tokens = json.loads((tmp_path / "small" / "coterie.json").read_text())["calibration"]["tokens"]
    assert {"own", "prose", "code", "chinese", "languages"} <= set(tokens)
    assert sum(tokens.values()) <= 300


def test_what_calibration_needs(coterie, native: str, tmp_path: Path) -> None:
    store = str(tmp_path / "small")
    for options, said in (
        (("--memory", "1GiB"), "--memory is about calibration"),
        (("--calibration-tokens", "5"), "--calibration-tokens is about calibration"),
        (("--ray", "auto"), "--ray is about calibration"),
        (("--calibrate", str(tmp_path)), "names no domain"),
    ):
        outcome = coterie("quantize", native, store, "--scheme", "int4", *options)
        assert outcome.code == 2
        assert said in " ".join(outcome.err.split())
