"""What pages show of commands is what these print."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from .pages import ROOT

SCRIPT = ROOT / "scripts" / "recording.py"
PRINTED = """\
1  Extract ──
256 experts

2  Generate ──
prose      And it came to pass, that he
           was there.
german     Sie können
           es.
speech     dog.wav → dog

Hit rate 64.9 % (decoding 67.9 %), 411.89 MiB read, 48.4 tokens per second.

3  Prove ──
Greatest difference: 0

4  Speak ──
ada        dog.wav → 'dog' → 'dog'

5  Cut ──
64 of 256
"""


@pytest.fixture(scope="module")
def recording() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recording", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_shows_three_steps_and_one_domain_of_text(recording: ModuleType) -> None:
    shown = recording.excerpt(PRINTED)
    assert shown.startswith("2  Generate\nprose ")
    assert shown.endswith("\n\n3  Prove\nGreatest difference: 0\n\n4  Speak\nada        dog.wav → 'dog' → 'dog'")
    assert [text for text in ("was there.", "dog.wav", "Hit rate") if text not in shown] == []
    assert [text for text in ("können", "es.", "64 of 256", "──") if text in shown] == []


def test_a_check_sees_what_must_not_change(recording: ModuleType) -> None:
    kept = recording.comparable(recording.excerpt(PRINTED))
    other = PRINTED.replace("64.9 %", "70.1 %").replace("was there.", "went.")
    assert recording.comparable(recording.excerpt(other)) == kept
    for old, new in (("difference: 0", "difference: 1e-3"), ("→ dog", "→ cat")):
        assert recording.comparable(recording.excerpt(PRINTED.replace(old, new))) != kept


def test_names_of_folders_and_times_are_shortened(recording: ModuleType, tmp_path: Path) -> None:
    printed = f"Wrote {tmp_path}/few: 23.50 MiB in 3.8 s (6.19 MiB/s).\nIt has all.   \n"
    assert recording.shortened(printed, tmp_path) == "Wrote …/few: 23.50 MiB in … s.\nIt has all.\n"


def test_commands_are_found_with_what_they_print(recording: ModuleType) -> None:
    page = "```console\n$ coterie a b\none\n\ntwo\n$ coterie c\n```\n\n```console\n$ other\n```\n"
    assert [recording.COMMAND.findall(block) for block in recording.BLOCK.findall(page)] == [
        [("coterie a b", "one\n\ntwo\n"), ("coterie c", "")]
    ]


def test_a_check_compares_errors_and_sizes_but_no_generated_text(recording: ModuleType) -> None:
    page = (
        "```console\n$ coterie generate few -q\nError: few\n$ coterie inspect few\nminimum   4 MiB\nsize 3\n"
        "$ coterie generate few -q --missing drop\nabc\ndef\n```\n"
    )
    kept = recording.comparable(page)
    for old, new in (("abc\ndef", "x"), ("minimum   4", "minimum   5")):
        assert recording.comparable(page.replace(old, new)) == kept
    for old, new in (("Error: few", "Error: many"), ("size 3", "size 4")):
        assert recording.comparable(page.replace(old, new)) != kept


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_pages_show_what_the_commands_print() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
