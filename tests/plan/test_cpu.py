import os
from pathlib import Path

import pytest

from coterie.plan.cpu import core_quota, instruction_sets, processor_name, transparent_huge_pages, usable_cores


def put(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_x86_flags_and_name(tmp_path: Path) -> None:
    put(tmp_path, "proc/cpuinfo", "processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nflags\t\t: fpu sse2 avx2 avx512f\n")
    assert instruction_sets(root=tmp_path) == ("avx2", "avx512f")
    assert processor_name(root=tmp_path) == "Some CPU @ 3 GHz"


def test_arm_features(tmp_path: Path) -> None:
    put(tmp_path, "proc/cpuinfo", "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n")
    assert instruction_sets(root=tmp_path) == ("asimd", "asimddp", "i8mm")


def test_without_cpuinfo_nothing_is_claimed(tmp_path: Path) -> None:
    assert instruction_sets(root=tmp_path) == ()
    assert processor_name(root=tmp_path)


def test_usable_cores_follow_the_affinity_mask() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity masks on this system")
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 1),
    ],
)
def test_core_quota(tmp_path: Path, files: dict[str, str], quota: int | None) -> None:
    for name, text in files.items():
        put(tmp_path, f"sys/fs/cgroup/{name}", text + "\n")
    assert core_quota(root=tmp_path) == quota


def test_huge_page_setting_is_the_bracketed_word(tmp_path: Path) -> None:
    assert transparent_huge_pages(root=tmp_path) is None
    put(tmp_path, "sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
    assert transparent_huge_pages(root=tmp_path) == "madvise"
