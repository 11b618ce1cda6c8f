import json
from pathlib import Path

import pytest
import torch


@pytest.fixture
def moe_path(zoo_checkpoint) -> str:
    return str(zoo_checkpoint("qwen3_moe", torch.bfloat16))


def test_a_model_is_pruned_and_exported(coterie, moe_path: str, tmp_path: Path) -> None:
    small, out = str(tmp_path / "small"), str(tmp_path / "out")
    made = coterie("prune", moe_path, "-o", small, "--keep", "75%", "--by", "random")
    assert made.code == 0, made.err
    assert "all 12 experts" in made.out
    assert coterie("verify", small, "--against", moe_path).code == 0
    planned = coterie("export", small, "-o", out, "--dry-run")
    assert planned.code == 0
    assert "disk needed" in planned.out
    assert not Path(out).exists()
    done = coterie("export", small, "-o", out, "--shard-size", "60kB")
    assert done.code == 0, done.err
    assert "It has 6 experts in each layer." in done.out
    assert (Path(out) / "model.safetensors.index.json").exists()
    assert coterie("verify", out).code == 0
    again = coterie("export", small, "-o", str(tmp_path / "again"), "--json")
    assert json.loads(again.out)["experts"] == {"text": 6}


def test_what_is_wrong_is_said(coterie, moe_path: str, tmp_path: Path) -> None:
    small = str(tmp_path / "small")
    for arguments, message in [
        (("prune", moe_path, "-o", small, "--keep", "6"), "--profile"),
        (("prune", moe_path, "-o", small, "--keep", "1", "--by", "random"), "at least 2"),
        (("prune", moe_path, "-o", small), "--keep"),
        (("prune", moe_path, "-o", "bundled", "--keep", "6", "--by", "random"), "bundled"),
        (("prune", moe_path, "-o", small, "--keep", "6", "--by", "rap"), "reap"),
        (("export", moe_path, "-o", small), "checkpoint already"),
    ]:
        outcome = coterie(*arguments)
        assert outcome.code == 2, arguments
        assert message in outcome.err
    assert not Path(small).exists()


def test_a_profile_of_the_commands_own_decides(coterie, readable: Path, tmp_path: Path) -> None:
    (tmp_path / "code.txt").write_text(" ".join(f"w{3 + n % 40}" for n in range(600)))
    profile = str(tmp_path / "p.db")
    assert coterie("profile", "record", str(readable), "--db", profile, "--text", f"code={tmp_path}/code.txt").code == 0
    small = tmp_path / "small"
    made = coterie("prune", str(readable), "-o", str(small), "--keep", "5", "--profile", profile, "--for", "code")
    assert made.code == 0, made.err
    selection = json.loads((small / "coterie-selection.json").read_text())
    assert selection["steps"] == [{"by": "reap", "tokens_of": {"text": ["text of code"]}}]
    assert [len(bank["experts"]) for bank in selection["banks"]] == [5, 5]
    wrong = coterie("prune", str(readable), "-o", str(small), "--keep", "5", "--profile", profile, "--for", "cod")
    assert wrong.code == 2
    assert "code" in wrong.err


def test_layers_of_several_sizes_are_planned_evaluated_and_profiled(coterie, readable: Path, tmp_path: Path) -> None:
    small, text, profile = str(tmp_path / "small"), tmp_path / "code.txt", str(tmp_path / "p.db")
    text.write_text(" ".join(f"w{3 + n % 40}" for n in range(300)))
    made = coterie(
        "prune", str(readable), "-o", small, "--keep", "5", "--by", "random", "--seed", "1", "--ranking", "global",
        "--least", "3",
    )  # fmt: skip
    assert made.code == 0, made.err
    sizes = [bank["experts"] for bank in json.loads(coterie("inspect", small, "--json").out)["banks"]]
    assert sum(sizes) == 10
    assert len(set(sizes)) == 2
    same = coterie("evaluate", small, "--against", small, "--text", str(text), "--context", "64", "--json")
    assert same.code == 0, same.err
    assert json.loads(same.out)["total"]["comparison"]["kld"]["value"] == 0
    assert coterie("plan", small, "--memory", "2GiB", "--json").code == 0
    recorded = coterie("profile", "record", small, "--db", profile, "--text", f"code={text}", "--context", "64")
    assert recorded.code == 0, recorded.err
    again = coterie(
        "prune", small, "-o", str(tmp_path / "again"), "--keep", "70%", "--by", "ean", "--profile", profile,
        "--ranking", "global", "--modality", "text",
    )  # fmt: skip
    assert again.code == 0, again.err
    refused = coterie("export", small, "-o", str(tmp_path / "out"))
    assert refused.code == 2
    assert "one number for all layers" in refused.err
