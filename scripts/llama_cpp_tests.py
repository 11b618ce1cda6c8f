"""Runs the tests of llama.cpp's server against `coterie serve`, and writes a table of what came of them.

    .venv-clients/bin/python scripts/llama_cpp_tests.py [--sdist FILE] [--table docs/llama-cpp-tests.md] [-k EXPRESSION]

The tests are in the source distribution of llama-cpp-python, which is downloaded unless it is given. None of them is
kept. They ask the bundled model, of which they know nothing: what they say of the texts and token counts of their own
model is left out. Tests of what Coterie does not do are not run; the table has the reason for each. The exit code is
1 if a test that applies fails. The environment is that of `make test-clients`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

from llama_cpp.reasons import DROPPED, FILES, reason_of

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "llama-cpp-python==0.3.36"
INSIDE = "/vendor/llama.cpp/tools/server/tests/"
TABLE = ROOT / "docs" / "llama-cpp-tests.md"


def main() -> int:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sdist", type=Path, help="source distribution of llama-cpp-python; else it is downloaded")
    parser.add_argument("--table", type=Path, help="file for the table; else it is printed")
    parser.add_argument("-k", dest="only", default="", help="run only these, as pytest's -k; no table is written")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llama-cpp-tests-") as folder:
        tests = extracted(given.sdist or downloaded(Path(folder)), Path(folder) / "tests")
        results = run(tests, given.only)
    failed = [name for name, (outcome, _) in results.items() if outcome == "failed"]
    for name in failed:
        print(f"FAILED {name}: {results[name][1]}")
    if not given.only:
        table = written(results)
        given.table.write_text(table, encoding="utf-8") if given.table else print(table)
    return 1 if failed else 0


def downloaded(folder: Path) -> Path:
    """The source distribution, from the package index."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python"]
    subprocess.run([*command, "--dest", str(folder), PACKAGE], check=True)
    (found,) = folder.glob("*.tar.gz")
    return found


def extracted(sdist: Path, folder: Path) -> Path:
    """The tests alone, without what they know of the texts of their own model."""
    with tarfile.open(sdist) as archive:
        for member in archive:
            _, found, name = member.name.partition(INSIDE)
            if found and member.isfile():
                member.name = name
                archive.extract(member, folder, filter="data")
    for file in folder.glob("unit/test_*.py"):
        lines = file.read_text(encoding="utf-8").splitlines()
        kept = [re.sub(r"\S.*", "pass", line) if any(one.search(line) for one in DROPPED) else line for line in lines]
        file.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return folder


def run(tests: Path, only: str) -> dict[str, tuple[str, str]]:
    """Name of each test → passed, failed or absent, and why."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "scripts" / "llama_cpp"), str(tests)]),
        "COTERIE_OTHER_PYTHON": os.environ.get("COTERIE_OTHER_PYTHON", sys.executable),
        "OMP_NUM_THREADS": "1",
    }
    pytest = [sys.executable, "-m", "pytest", "-p", "plugin", "-q", "-p", "no:cacheprovider", "--tb=short"]
    names = subprocess.run(
        [*pytest, "--collect-only", "unit"], cwd=tests, env=environment, capture_output=True, text=True, check=False
    ).stdout.splitlines()
    names = [name.removeprefix("unit/") for name in names if "::" in name]
    applying = [name for name in names if not reason_of(name)]
    report = tests / "report.xml"
    asked = [f"unit/{name}" for name in applying]
    more = ["-k", only] if only else []
    subprocess.run([*pytest, f"--junitxml={report}", *more, *asked], cwd=tests, env=environment, check=False)
    results = {name: ("absent", reason_of(name)) for name in names if reason_of(name)}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}.py::{case.get('name')}"
        problem = next((one for one in case if one.tag in ("failure", "error")), None)
        skipped = next((one for one in case if one.tag == "skipped"), None)
        if problem is not None:
            results[name] = ("failed", str(problem.get("message"))[:300])
        else:
            results[name] = ("passed", "") if skipped is None else ("absent", str(skipped.get("message")))
    return results


def written(results: dict[str, tuple[str, str]]) -> str:
    """The page for the docs."""
    files: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, (outcome, why) in results.items():
        file, _, test = name.partition("::")
        files[file]["" if outcome == "passed" else why].append(test.partition("[")[0])
    passed = sum(outcome == "passed" for outcome, _ in results.values())
    lines = [
        "# llama.cpp's server tests",
        "",
        "Written by `scripts/llama_cpp_tests.py`, which runs the tests of llama.cpp's server against `coterie serve` "
        f"with the bundled model. They are those of `{PACKAGE}`. Addresses are asked with `/v1`. What they say of "
        "texts and token counts of their own model is left out.",
        "",
        f"{passed} of {len(results)} cases pass. The others do not apply, for these reasons.",
        "",
        "| file | cases | pass | tests that do not apply | why |",
        "|---|--:|--:|---|---|",
    ]
    for file, reasons in sorted(files.items()):
        total = sum(map(len, reasons.values()))
        good = len(reasons.pop("", []))
        if not reasons:
            lines.append(f"| {file} | {total} | {good} | | |")
        for place, (reason, tests) in enumerate(reasons.items()):
            whole = file in FILES
            names = "all" if whole else ", ".join(f"`{name}`" for name in dict.fromkeys(tests))
            head = f"| {file} | {total} | {good} " if place == 0 else "| | | "
            lines.append(f"{head}| {names} | {reason} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
