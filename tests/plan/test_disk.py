import os
from pathlib import Path

import pytest

from coterie.errors import UsageError
from coterie.plan import disk
from coterie.plan.disk import ReadSpeed, disk_facts, disk_identity, measure_reads, supports_direct_io


def test_facts_of_a_directory_that_is_not_there_yet(tmp_path: Path) -> None:
    facts = disk_facts(tmp_path / "not" / "yet")
    assert facts.path == tmp_path
    assert 0 < facts.free <= facts.total
    assert facts.direct_io == supports_direct_io(tmp_path)


def test_the_innermost_and_latest_mount_wins(tmp_path: Path) -> None:
    place = tmp_path / "data" / "stores"
    place.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    lines = [
        "1 0 8:1 / / rw - ext4 /dev/root rw",
        f"2 1 8:2 / {tmp_path.resolve()}/data rw - xfs /dev/old rw",
        f"3 1 8:3 / {tmp_path.resolve()}/data rw - btrfs /dev/new rw",
        f"4 1 8:4 / {tmp_path.resolve()}/dat rw - vfat /dev/prefix rw",
    ]
    (tmp_path / "proc/self/mountinfo").write_text("\n".join(lines) + "\n")
    facts = disk_facts(place, root=tmp_path)
    assert (facts.filesystem, facts.device) == ("btrfs", "/dev/new")
    assert facts.mount_point == f"{tmp_path.resolve()}/data"


@pytest.mark.parametrize("direct", [True, False])
def test_measurement_reads_what_it_says_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: bool
) -> None:
    if not direct:
        monkeypatch.setattr(disk, "HAS_DIRECT", False)
    lines: list[str] = []
    speeds = measure_reads(tmp_path, nbytes=8 * 2**20, seconds=600.0, progress=lines.append)
    assert [(speed.pattern, speed.block // 1024, speed.depth) for speed in speeds] == [
        ("sequential", 8192, 1),
        ("random", 128, 1), ("random", 128, 4),
        ("random", 512, 1), ("random", 512, 4),
        ("random", 1024, 1), ("random", 1024, 4),
    ]  # fmt: skip
    assert {speed.nbytes for speed in speeds} == {8 * 2**20}
    assert all(speed.bytes_per_second > 0 for speed in speeds)
    assert {speed.direct for speed in speeds} == {direct and supports_direct_io(tmp_path)}
    assert len(lines) == 1 + len(speeds)
    assert list(tmp_path.iterdir()) == []


def test_the_deadline_still_lets_every_lane_read_once(tmp_path: Path) -> None:
    speeds = measure_reads(tmp_path, nbytes=8 * 2**20, seconds=0.0)
    assert [speed.nbytes // speed.block for speed in speeds[1:]] == [1, 4, 1, 4, 1, 4]


def test_latency_is_per_read_as_its_issuer_sees_it() -> None:
    speed = ReadSpeed(pattern="random", block=100, depth=4, nbytes=800, seconds=2.0, direct=True)
    assert speed.bytes_per_second == 400
    assert speed.seconds_per_read == 1.0


def test_a_full_disk_is_an_error_with_advice_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int, _data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UsageError, match=r"No space left.*--quick"):
        measure_reads(tmp_path, nbytes=8 * 2**20)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("nbytes", [0, -8 * 2**20, 2**20])
def test_sizes_that_are_no_multiple_of_the_block_are_refused(tmp_path: Path, nbytes: int) -> None:
    with pytest.raises(UsageError, match="multiple of 8 MiB"):
        measure_reads(tmp_path, nbytes=nbytes)


def test_a_disk_is_named_by_what_the_system_knows_of_it(tmp_path: Path) -> None:
    number = tmp_path.stat().st_dev
    name = f"{os.major(number)}:{os.minor(number)}"
    block = tmp_path / "sys/dev/block" / name
    for path, text in (
        (tmp_path / "proc/self/mountinfo", "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"),
        (block / "size", "1000\n"),
        (block.parent / "device/model", "Fast Disk\n"),
        (tmp_path / "dev/sda1", ""),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "dev/disk/by-uuid").mkdir(parents=True)
    (tmp_path / "dev/disk/by-uuid/1234-abcd").symlink_to(tmp_path / "dev/sda1")
    expected = f"{name} ext4 /dev/sda1 uuid=1234-abcd model=Fast Disk sectors=1000"
    assert disk_identity(tmp_path, root=tmp_path) == expected
    # A path that is not there yet lies where its parent does.
    assert disk_identity(tmp_path / "not/yet", root=tmp_path) == expected


def test_a_disk_has_a_name_where_the_system_tells_nothing(tmp_path: Path) -> None:
    assert disk_identity(tmp_path, root=tmp_path / "nowhere").endswith("unknown unknown")
