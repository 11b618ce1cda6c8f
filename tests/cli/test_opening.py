"""Opening a model: what the command line refuses before torch, and the names that models have."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

WRONG = [
    (("generate", "./nowhere", "x"), "There is no directory"),
    (("chat", "bundeld"), "Did you mean 'bundled'?"),
    (("bench", "./nowhere"), "There is no directory"),
    (("inspect", "./nowhere"), "There is no directory"),
    (("verify", "./nowhere"), "There is no directory"),
    (("verify", "bundled", "--against", "./nowhere"), "There is no directory"),
    (("extract", "./nowhere", "store"), "There is no directory"),
    (("quantize", "./nowhere", "store", "--scheme", "int4"), "There is no directory"),
    (("evaluate", "./nowhere", "--text", "x.txt"), "There is no directory"),
    (("evaluate", "bundled", "--text", "x.txt", "--eviction", "foo"), "eviction policy 'foo'"),
    (("routers", "./nowhere"), "There is no directory"),
    (("report", "./nowhere", "p.db", "-o", "pages"), "There is no directory"),
    (("profile", "record", "./nowhere", "-o", "p.db", "--text", "code=x"), "There is no directory"),
    (("profile", "record", "bundled", "-o", "p.db", "--text", "code=x", "--memory", "-1"), "'-1'"),
    (("generate", "bundled", "x", "--temperature", "-1"), "temperature"),
    (("generate", "bundled", "x", "--memory", "-1"), "'-1'"),
    (("generate", "bundled", "x", "--expert-memory", "200%"), "200%"),
    (("generate", "bundled", "x", "--eviction", "foo"), "eviction policy 'foo'"),
    (("generate", "bundled", "x", "--pin", "1GiB"), "--pin needs a profile"),
    (("generate", "bundled", "x", "--template-option", "messages=[]"), "cannot be told messages"),
    (("chat", "bundled", "--top-p", "7"), "top"),
    (("chat", "bundled", "--template-option", '{"tools": 1}'), "cannot be told tools"),
    (("chat", "bundled", "--memory", "-1"), "'-1'"),
    (("bench", "bundled", "--eviction", "foo"), "eviction policy 'foo'"),
    (("generate", "bundled", "x", "--max-rate", "fast"), "rate 'fast'"),
    (("chat", "bundled", "--max-rate", "20MB/s", "--offline"), "--max-rate"),
    (("doctor", "./nowhere"), "There is no directory"),
    (("plan", "bundled", "--memory", "-1"), "'-1'"),
    (("plan", "bundled", "--eviction", "foo"), "eviction policy 'foo'"),
    (("plan", "./nowhere"), "There is no directory"),
    (("generate", "bundled", "x", "--profile", "nowhere.db"), "There is no profile"),
    (("generate", "bundled", "x", "--source", "bundled"), "--missing fetch"),
    (("evaluate", "bundled", "--text", "nowhere.txt"), "nowhere.txt cannot be read"),
    (("evaluate", "bundled", "--text", "."), "a directory"),
    (("profile", "record", "bundled", "-o", "p.db"), "nothing to run the model over"),
    (("profile", "record", "bundled", "-o", "p.db", "--text", "code=nowhere"), "There is no file"),
    (("experts", "show", "p.db", "0", "1", "--tokenizer", "./nowhere"), "There is no directory"),
    (("extract", "bundled", "store", "--scheme", "foo"), "Unknown scheme 'foo'"),
    (("extract", "bundled", "store", "--dense-scheme", "int44"), "Did you mean 'int4'?"),
    (("quantize", "bundled", "store", "--scheme", "foo"), "Unknown scheme 'foo'"),
    (("generate", "And it came to pass"), "MODEL comes first"),
    (("extract", "bundled", "bundled"), "model in the package"),
    (("serve",), "serve"),
]


def test_what_cannot_be_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    """One process for all: whichever imported torch would be seen after it."""
    script = (
        "import contextlib, io, sys\n"
        "from coterie.cli import main\n"
        f"for arguments in {[list(arguments) for arguments, _ in WRONG]!r}:\n"
        "    said = io.StringIO()\n"
        "    with contextlib.redirect_stderr(said):\n"
        "        code = main(arguments)\n"
        "    heavy = sorted({'torch', 'transformers'} & set(sys.modules))\n"
        "    print(code, heavy, ' '.join(said.getvalue().split()), sep='\\t')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    answers = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(answers) == len(WRONG)
    for (arguments, message), (code, heavy, said) in zip(WRONG, answers, strict=True):
        assert code in ("1", "2"), arguments
        assert message in said, arguments
        assert heavy == "[]", arguments


def test_a_store_opens_by_its_name(coterie, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COTERIE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert coterie("extract", model, str(tmp_path / "home" / "stores" / "mine")).code == 0
    assert coterie("inspect", "mine", "--json").code == 0
    assert coterie("verify", "mine", "--against", model).code == 0
    assert coterie("generate", "mine", "the", "-n", "2", "--expert-memory", "100%").code == 0
    assert coterie("quantize", "mine", "smaller", "--scheme", "int8").code == 0
    # A directory here comes first, and this one is no model.
    Path("mine").mkdir()
    assert coterie("inspect", "mine").code == 1
    shutil.rmtree("mine")
    assert coterie("stores", "remove", "mine", "--yes").code == 0
    assert coterie("inspect", "mine").code == 1
