"""Reading experts in spans: any places in a file, with and without O_DIRECT, and what is wrong with the file."""

from __future__ import annotations

import errno
import mmap
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.errors import CheckpointFileError
from coterie.extraction.spans import SpanReader, join_extents
from coterie.records import LocalFile
from coterie.spec import Access, BankKey, Extent, OpenBytes, RecordLayout

KEY = BankKey("text", 0, "mlp").expert(0)


def layout_of(*sizes: int) -> RecordLayout:
    return RecordLayout.build("x", [(f"f{number}", "U8", (size,)) for number, size in enumerate(sizes)])


def read(reader: SpanReader, layout: RecordLayout, extents: tuple[Extent, ...], scratch_pages: int = 2) -> bytes:
    record, scratch = mmap.mmap(-1, layout.nbytes), mmap.mmap(-1, scratch_pages * 4096)
    record[:] = b"\xaa" * layout.nbytes
    reader.read(KEY, layout, extents, memoryview(record), memoryview(scratch))
    return record[:]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spans") / "data"
    path.write_bytes(random.Random(0).randbytes(50_001))
    return path


@settings(max_examples=60)
@given(data=st.data(), direct=st.booleans(), pages=st.integers(2, 20))
def test_fields_come_from_their_places_and_padding_is_zero(data, direct: bool, pages: int, file: Path) -> None:
    sizes = data.draw(st.lists(st.integers(1, 12_000), min_size=1, max_size=4))
    layout = layout_of(*sizes)
    extents = tuple(
        Extent(source=LocalFile(file), offset=data.draw(st.integers(0, 50_001 - size)), nbytes=size, at=field.offset)
        for size, field in zip(sizes, layout.fields, strict=True)
    )
    content = file.read_bytes()
    expected = bytearray(layout.nbytes)
    for extent in extents:
        expected[extent.at : extent.at + extent.nbytes] = content[extent.offset : extent.offset + extent.nbytes]
    reader = SpanReader(direct=direct)
    assert read(reader, layout, extents, pages) == expected
    reader.close()


def test_neighbours_are_joined_and_distant_ones_are_not(file: Path) -> None:
    a, b, c = (Extent(source=LocalFile(file), offset=offset, nbytes=10) for offset in (100, 110, 1000))
    other = Extent(source=LocalFile(file.with_name("other")), offset=110, nbytes=10)
    assert [(s.start, s.end) for s in join_extents([c, a, b], gap=100)] == [(100, 120), (1000, 1010)]
    assert [(s.start, s.end) for s in join_extents([c, a, b], gap=880)] == [(100, 1010)]
    assert len(join_extents([a, other])) == 2


@pytest.mark.parametrize("direct", [True, False])
def test_a_file_that_ends_early_is_named(direct: bool, file: Path) -> None:
    layout = layout_of(5000)
    extents = (Extent(source=LocalFile(file), offset=48_000, nbytes=5000),)
    with pytest.raises(CheckpointFileError, match=r"data should reach byte 53000: the file ends at 50001"):
        read(SpanReader(direct=direct), layout, extents)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    extents = (Extent(source=LocalFile(tmp_path / "gone"), offset=0, nbytes=10),)
    with pytest.raises(CheckpointFileError, match="No such file"):
        read(SpanReader(), layout_of(10), extents)


def test_a_file_system_without_direct_reads(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = LocalFile.open
    asked: list[Access] = []

    def refuse(self: LocalFile, access: Access) -> OpenBytes:
        asked.append(access)
        if access == "direct":
            raise OSError(errno.EINVAL, "no direct reads")
        return plain(self, access)

    monkeypatch.setattr(LocalFile, "open", refuse)
    reader, layout = SpanReader(), layout_of(5000)
    extents = (Extent(source=LocalFile(file), offset=77, nbytes=5000),)
    for _ in range(2):
        assert read(reader, layout, extents)[:5000] == file.read_bytes()[77:5077]
    assert asked == ["direct", "scattered"]
