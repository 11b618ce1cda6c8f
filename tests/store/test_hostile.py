"""Stores of strangers: no wait, no recursion, no memory beyond limits, and no exception but ours."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from coterie.errors import StoreError, StoreFormatError
from coterie.files.below import DEPTH, directories_below, files_below
from coterie.spec import RecordLayout
from coterie.store import Store, verify_store
from coterie.store.journal import read_journal
from coterie.store.padding import PaddingCheck
from coterie.store.strict_json import MAX_VALUES
from odd_files import ODD, make_odd

from .journals import ENTRY, HEADER, line

SHARD = "dense-00001-of-00002.safetensors"
INDEX = "dense.safetensors.index.json"


def keys(count: int, twice: int) -> bytes:
    names = [*range(count), twice]
    return ("{" + ",".join(f'"k{name}":0' for name in names) + "}").encode()


def test_a_key_that_occurs_twice_among_many_is_found_at_once(store: Path) -> None:
    (store / "coterie.json").write_bytes(keys(200_000, 199_999))
    with pytest.raises(StoreFormatError, match="'k199999' occurs twice"):
        Store.open(store)


@pytest.mark.parametrize("text", [b"[]", b"{}", b'{"a":0}', b"0"])
def test_more_values_than_any_store_has_are_refused_before_they_are_parsed(store: Path, text: bytes) -> None:
    (store / "coterie.json").write_bytes(b"[" + b",".join([text] * MAX_VALUES) + b"]")
    with pytest.raises(StoreFormatError, match="values"):
        Store.open(store)


def test_the_values_of_a_large_model_are_within_the_limit() -> None:
    """61 layers of 384 experts, and ten times as many."""
    record = '{"id":383,"offset":1234567890,"bytes":44040192,"scheme":"int4","layout":"int4","xxh3":"%032d"}'
    assert (record.count(",") + record.count("{")) * 61 * 384 * 10 < MAX_VALUES


@pytest.mark.parametrize("name", [SHARD, INDEX, "config.json", "experts/talker/mlp-layer-000.safetensors"])
@pytest.mark.parametrize("kind", ODD)
def test_verify_does_not_open_what_it_refuses(store: Path, name: str, kind: str) -> None:
    make_odd(kind, store / name)
    problems = verify_store(store).problems
    assert (name, "R20") in {(one.file, one.rule) for one in problems}
    with pytest.raises(StoreFormatError, match=name):
        Store.open(store)


def test_directories_within_directories_are_no_recursion(store: Path) -> None:
    deep = store / "deep"
    inner = deep
    inner.mkdir()
    try:
        for _ in range(1500):
            inner = inner / "d"
            inner.mkdir()
        problems = verify_store(store).problems
        assert [(one.rule, one.file.count("/")) for one in problems] == [("R29", DEPTH)]
    finally:
        # shutil.rmtree recurses.
        subprocess.run(["rm", "-rf", str(deep)], check=True)


def test_what_is_below_a_directory(tmp_path: Path) -> None:
    (tmp_path / "b/c").mkdir(parents=True)
    (tmp_path / "b/c/x").touch()
    (tmp_path / "b.y").touch()
    (tmp_path / "a").symlink_to(tmp_path / "b")
    assert files_below(tmp_path) == ["a", "b/c/x", "b.y"]
    assert directories_below(tmp_path) == [tmp_path / "b/c", tmp_path / "b", tmp_path]


@pytest.mark.parametrize("piece", [1, 3, 8, 100])
@pytest.mark.parametrize(("position", "found"), [(None, None), (70, 70), (5, None), (500, 500), (4095, 4095)])
def test_padding_is_looked_at_in_pieces(piece: int, position: int | None, found: int | None) -> None:
    layout = RecordLayout.build("x", [("a", "U8", (65,)), ("b", "U8", (3,))])
    record = bytearray(layout.nbytes)
    record[5] = 1  # within a field
    if position is not None:
        record[position] = 7
    check = PaddingCheck(layout)
    for start in range(0, len(record), piece):
        check.look(record[start : start + piece])
    assert check.nonzero == found


@pytest.mark.parametrize(
    "lines",
    [
        [b"{}"], [b"[]"], [b"5"], [b"not json"], [b"[" * 5000], [b"1" * 9000], [{"base": 1, "parts": {}, "files": []}],
        [{**HEADER, "more": 1}], [{**HEADER, "parts": []}], [{**HEADER, "files": {}}], [{**HEADER, "files": [1]}],
        [b'{"base":"","base":"","files":[],"parts":{}}'], [b"\xff\xfe"], [],
    ],
)  # fmt: skip
def test_a_journal_that_no_writer_wrote_is_none(tmp_path: Path, lines: list[object]) -> None:
    path = tmp_path / ".coterie.journal"
    path.write_bytes(b"".join(map(line, lines)))
    assert read_journal(path) is None


@pytest.mark.parametrize(
    "entry", [b"{}", b"5", {**ENTRY, "bytes": -1}, {**ENTRY, "bytes": "3"}, {**ENTRY, "xxh3": 5}, {"file": 1}]
)
def test_a_journal_ends_at_the_first_line_that_is_none(tmp_path: Path, entry: object) -> None:
    path = tmp_path / ".coterie.journal"
    good = line(HEADER) + line(ENTRY)
    path.write_bytes(good + line(entry) + line(ENTRY))
    found = read_journal(path)
    assert found is not None
    header, finished, end = found
    assert (header.files, list(finished), end) == (("config.json",), ["config.json"], len(good))


@pytest.mark.parametrize("kind", ODD)
def test_a_journal_that_is_no_file_is_told(tmp_path: Path, kind: str) -> None:
    path = make_odd(kind, tmp_path / ".coterie.journal")
    with pytest.raises(StoreError, match=r"\.coterie\.journal cannot be read"):
        read_journal(path)


@pytest.mark.slow
@pytest.mark.parametrize("text", ['{"a":0}', '"k"', "[]", "12345678901"])
def test_a_manifest_as_large_as_it_may_be_takes_less_than_a_gibibyte(tmp_path: Path, text: str) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom coterie.store import Store\n"
        "try:\n    Store.open(Path(sys.argv[1]))\nexcept Exception as error:\n    print(type(error).__name__)\n"
    )
    each = text.count("{") + text.count("[") + 1
    (tmp_path / "coterie.json").write_text("[" + ",".join([text] * (MAX_VALUES // each - 2)) + "]")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))

    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, preexec_fn=limit)
    assert run.stdout == "StoreFormatError\n", run.stderr[-500:]
