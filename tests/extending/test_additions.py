"""Someone adds a scheme and an eviction policy: each takes three files at most, and a model runs exactly with them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

import coterie
from coterie.native import library

HERE = Path(__file__).parent
SOURCE = Path(coterie.__file__).parent

Edits = dict[str, Path | list[tuple[str, str]]]
"""File below ``src/coterie`` → the new file, or old and new text of each change."""

SCHEME: Edits = {
    "quant/toy.py": HERE / "toy_scheme.py",
    "quant/registry.py": [
        (
            "from coterie.quant.scheme import Scheme\n",
            "from coterie.quant.scheme import Scheme\nfrom coterie.quant.toy import Toy\n",
        ),
        ("= {**GROUPED_SCHEMES, ", '= {**GROUPED_SCHEMES, "toy": Toy(), '),
        ("for name, form in SCHEME_FORMATS.items()", 'for name, form in SCHEME_FORMATS.items() if name != "toy"'),
    ],
    "spec/encodings.py": [
        (
            "_SCHEMES = (\n",
            '_SCHEMES = (\n    SchemeFormat(name="toy", code_bits=8, code_dtype="I8", group=None),\n',
        )
    ],
}
POLICY: Edits = {
    "eviction/toy.py": HERE / "toy_policy.py",
    "eviction/policy.py": [
        (
            "from coterie.eviction.trust import TrustPolicy\n",
            "from coterie.eviction.toy import ToyPolicy\nfrom coterie.eviction.trust import TrustPolicy\n",
        ),
        ('    "markov": MarkovPolicy,\n', '    "markov": MarkovPolicy,\n    "toy": ToyPolicy,\n'),
    ],
}


def make(edits: Edits, package: Path) -> None:
    """Makes the edits in a copy of ``src/coterie``."""
    for file, change in edits.items():
        path = package / file
        if isinstance(change, Path):
            assert not path.exists(), file
            shutil.copy(change, path)
            continue
        text = path.read_text()
        for old, new in change:
            assert text.count(old) == 1, (file, old)
            text = text.replace(old, new)
        path.write_text(text)


def test_a_scheme_and_a_policy_are_added_in_three_files_each(zoo_checkpoint, tmp_path: Path) -> None:
    # With what is compiled: it goes by the times and sizes of its sources.
    shutil.copytree(SOURCE, tmp_path / "src" / "coterie")
    for edits in (SCHEME, POLICY):
        assert len(edits) <= 3
        make(edits, tmp_path / "src" / "coterie")
    paths = (tmp_path / "src", HERE.parent)
    done = subprocess.run(
        [
            sys.executable,
            HERE / "running.py",
            zoo_checkpoint("qwen3_moe", torch.bfloat16),
            tmp_path / "store",
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    # With the native library, too, where it was built: what it does not know is left to torch.
    assert done.stdout.split("\n")[-2:] == [f"exact, native: {library() is not None}", ""], done.stderr
