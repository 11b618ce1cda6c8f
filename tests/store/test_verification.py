"""Every byte of a store is checked: a flipped bit anywhere is found and its file named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.errors import StoreNotFoundError
from coterie.store import Store, verify_store

from .tiny import make_plan, write_store


@pytest.fixture(scope="module")
def spoilt(pristine_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store that a test may change as long as it changes it back."""
    path = tmp_path_factory.mktemp("spoilt") / "store"
    shutil.copytree(pristine_store, path)
    yield path
    assert verify_store(path).ok


def flip(path: Path, offset: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


@settings(max_examples=80)
@given(data=st.data(), bit=st.integers(0, 7))
def test_a_flipped_bit_in_any_record_is_found(spoilt: Path, data: st.DataObject, bit: int) -> None:
    store = Store.open(spoilt)
    key = data.draw(st.sampled_from(sorted(store.keys())))
    (extent,) = store.extents(key)
    offset = extent.offset + data.draw(st.integers(0, extent.nbytes - 1))
    flip(extent.source.path, offset, bit)
    try:
        (problem,) = verify_store(spoilt).problems
    finally:
        flip(extent.source.path, offset, bit)
    assert (problem.kind, problem.rule) == ("corrupt", "R27")
    assert problem.file == extent.source.path.relative_to(store.path).as_posix()
    assert problem.place == f"expert {key.expert:05d}, offset {extent.offset}"


@settings(max_examples=120)
@given(data=st.data(), bit=st.integers(0, 7))
def test_a_flipped_bit_in_any_file_is_found(spoilt: Path, data: st.DataObject, bit: int) -> None:
    files = sorted(path for path in spoilt.rglob("*") if path.is_file() and path.stat().st_size)
    path = data.draw(st.sampled_from(files))
    offset = data.draw(st.integers(0, path.stat().st_size - 1))
    flip(path, offset, bit)
    try:
        problems = verify_store(spoilt).problems
    finally:
        flip(path, offset, bit)
    # The newline after the manifest may become another blank: that changes nothing that is said.
    harmless = path.name == "coterie.json" and offset == path.stat().st_size - 1
    assert harmless or path.relative_to(spoilt).as_posix() in {problem.file for problem in problems}


def test_a_good_store_has_a_clean_report(pristine_store: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = verify_store(pristine_store, progress=lambda done, total: seen.append((done, total)), threads=3)
    assert report.ok
    assert (report.files, report.experts, report.nbytes) == (
        10,
        17,
        sum(Store.open(pristine_store).manifest.file_sizes.values()),
    )
    assert seen == sorted(seen)
    assert seen[-1] == (report.nbytes, report.nbytes)


def test_all_problems_are_collected(store: Path) -> None:
    (store / "experts/talker/mlp-layer-000.safetensors").unlink()
    flip(store / "experts/thinker/mlp-layer-000.safetensors", 5000, 0)
    flip(store / "experts/thinker/mlp-layer-000.safetensors", 28_671, 0)
    flip(store / "tokenizer.json", 0, 0)
    (store / "stranger").write_text("x")
    found = [(problem.file, problem.kind) for problem in verify_store(store).problems]
    assert found == [
        ("experts/talker/mlp-layer-000.safetensors", "missing"),
        ("experts/thinker/mlp-layer-000.safetensors", "corrupt"),
        ("experts/thinker/mlp-layer-000.safetensors", "corrupt"),
        ("stranger", "foreign"),
        ("tokenizer.json", "corrupt"),
    ]


def test_a_partial_and_grown_store_is_good(tmp_path: Path) -> None:
    write_store(tmp_path, make_plan([1, 3]))
    assert verify_store(tmp_path).ok
    write_store(tmp_path, make_plan([0, 1]))
    report = verify_store(tmp_path)
    assert report.ok
    assert report.experts == 9


def test_no_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        verify_store(tmp_path)


def test_a_file_that_is_written_to_meanwhile_is_one_problem(store: Path) -> None:
    """Whatever it holds: what was read of it is not vouched for."""
    files = [path for path in store.rglob("*.safetensors") if path.parent != store]
    touched = []

    def progress(done: int, total: int) -> None:
        if not touched:
            touched.extend(files)
            for path in files:
                os.utime(path, ns=(1, 1))

    report = verify_store(store, progress=progress, threads=1)
    found = [problem for problem in report.problems if "written to" in problem.message]
    assert found
    assert len(found) == len({problem.file for problem in found})
    assert {(problem.kind, problem.place) for problem in found} == {("malformed", "the file itself")}
