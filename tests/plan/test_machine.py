import subprocess
import sys
from pathlib import Path

import pytest

from coterie.plan.machine import (
    MemoryLimits,
    ProcessMemory,
    available_memory,
    cgroup_memory,
    cgroup_memory_limit,
    default_memory_budget,
    memory_limits,
    memory_margin,
    process_memory,
    total_memory,
)

GIB = 2**30
MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1000000 kB\nMemAvailable:    8388608 kB\nHugePages_Total: 0\n"
STATUS = "Name:\tpython\nVmPTE:\t     512 kB\nRssAnon:\t  204800 kB\nRssFile:\t   92160 kB\nRssShmem:\t       4 kB\n"
V1_MOUNTS = (
    "30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755\n"
    "31 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    "32 30 0:29 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
)
V2_MOUNTS = "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, **{"proc/meminfo": MEMINFO, "proc/self/status": STATUS})
    return tmp_path


def test_meminfo_is_read_in_bytes(root: Path) -> None:
    assert total_memory(root=root) == 16 * GIB
    assert available_memory(root=root) == 8 * GIB


def test_process_memory_comes_from_status(root: Path) -> None:
    memory = process_memory(root=root)
    assert memory == ProcessMemory(anonymous=200 * 2**20, file_mapped=90 * 2**20, shared=4096, page_tables=512 * 1024)
    assert memory.total == 200 * 2**20 + 90 * 2**20 + 4096 + 512 * 1024


def test_exact_process_memory_comes_from_smaps_rollup(root: Path) -> None:
    rollup = "5581-7ffe ---p 00000000 00:00 0    [rollup]\nRss:   300000 kB\nPss:  1 kB\nAnonymous:  200000 kB\n"
    write(root, **{"proc/self/smaps_rollup": rollup})
    memory = process_memory(exact=True, root=root)
    assert memory.anonymous == 200000 * 1024
    assert memory.file_mapped == (300000 - 200000 - 4) * 1024
    assert memory.page_tables == 512 * 1024


def test_without_kernel_files_psutil_answers(tmp_path: Path) -> None:
    memory = process_memory(root=tmp_path)
    assert memory.anonymous > 2**20
    assert total_memory(root=tmp_path) >= available_memory(root=tmp_path) > 2**20
    assert cgroup_memory_limit(root=tmp_path) is None


ALLOCATING = """
import mmap
from coterie.plan.machine import process_memory
before = process_memory(exact=True).anonymous
# Pages of the process's own: what malloc returns may be memory that was freed a moment ago and still counts.
with mmap.mmap(-1, 64 * 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
    block.write(b"\\x01" * len(block))
    print(process_memory(exact=True).anonymous - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory is counted in another way")
def test_a_process_grows_when_it_allocates() -> None:
    # In a process of its own: here, what other tests left could be freed at the same moment.
    run = subprocess.run([sys.executable, "-c", ALLOCATING], capture_output=True, text=True, timeout=250, check=True)
    assert 60 * 2**20 <= int(run.stdout) <= 160 * 2**20


def test_v1_limit_of_an_ancestor_counts(root: Path) -> None:
    base = "sys/fs/cgroup/memory"
    write(
        root,
        **{
            "proc/self/mountinfo": V1_MOUNTS,
            "proc/self/cgroup": "9:cpu:/\n4:memory:/jobs/one\n0::/\n",
            f"{base}/memory.limit_in_bytes": "9223372036854771712\n",
            f"{base}/jobs/memory.limit_in_bytes": f"{4 * GIB}\n",
            f"{base}/jobs/memory.usage_in_bytes": f"{3 * GIB}\n",
            f"{base}/jobs/memory.stat": f"cache 1\ntotal_cache {2 * GIB}\ntotal_shmem {GIB // 2}\n",
            f"{base}/jobs/one/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    found = cgroup_memory(root=root)
    assert found is not None
    assert (found.version, found.path, found.limit) == (1, root / base / "jobs", 4 * GIB)
    assert found.file_cache == 3 * GIB // 2
    assert found.headroom == 4 * GIB - (3 * GIB - 3 * GIB // 2)


def test_v1_unlimited_is_no_limit(root: Path) -> None:
    write(
        root,
        **{
            "proc/self/mountinfo": V1_MOUNTS,
            "proc/self/cgroup": "4:memory:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert cgroup_memory_limit(root=root) is None


def test_v2_takes_the_smaller_of_max_and_high(root: Path) -> None:
    base = "sys/fs/cgroup/user.slice"
    write(
        root,
        **{
            "proc/self/mountinfo": V2_MOUNTS,
            "proc/self/cgroup": "0::/user.slice\n",
            f"{base}/memory.max": f"{8 * GIB}\n",
            f"{base}/memory.high": f"{6 * GIB}\n",
            f"{base}/memory.current": f"{GIB}\n",
            f"{base}/memory.stat": f"anon {GIB // 2}\nfile {GIB // 2}\nshmem 0\n",
        },
    )
    found = cgroup_memory(root=root)
    assert found is not None
    assert (found.version, found.limit, found.headroom) == (2, 6 * GIB, 6 * GIB - GIB // 2)


def test_v2_max_means_no_limit(root: Path) -> None:
    write(
        root,
        **{
            "proc/self/mountinfo": V2_MOUNTS,
            "proc/self/cgroup": "0::/a\n",
            "sys/fs/cgroup/a/memory.max": "max\n",
            "sys/fs/cgroup/a/memory.high": "max\n",
        },
    )
    assert cgroup_memory(root=root) is None


@pytest.mark.parametrize(
    ("mounts", "member"),
    [
        # The mount shows the container's subtree, /proc/self/cgroup the whole path.
        ("30 25 0:26 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n", "/docker/abc"),
        # The path named does not exist in what is mounted.
        ("30 25 0:26 / /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n", "/docker/abc"),
        # A cgroup outside the namespace.
        ("30 25 0:26 / /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n", "/../other"),
    ],
)
def test_inside_a_container_the_mount_point_is_the_cgroup(root: Path, mounts: str, member: str) -> None:
    write(
        root,
        **{
            "proc/self/mountinfo": mounts,
            "proc/self/cgroup": f"4:memory:{member}\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
        },
    )
    assert cgroup_memory_limit(root=root) == 2 * GIB


def test_mount_points_with_spaces_are_unescaped(root: Path) -> None:
    write(
        root,
        **{
            "proc/self/mountinfo": "30 25 0:26 / /sys/my\\040cgroups rw - cgroup2 none rw\n",
            "proc/self/cgroup": "0::/\n",
            "sys/my cgroups/memory.max": f"{GIB}\n",
        },
    )
    assert cgroup_memory_limit(root=root) == GIB


def test_default_budget_is_what_is_available_and_held_less_a_margin(root: Path) -> None:
    attainable = 8 * GIB + 200 * 2**20
    assert default_memory_budget(root=root) == attainable - attainable // 16


def test_default_budget_stays_below_the_cgroup_limit(root: Path) -> None:
    write(
        root,
        **{
            "proc/self/mountinfo": V2_MOUNTS,
            "proc/self/cgroup": "0::/a\n",
            "sys/fs/cgroup/a/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/a/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/a/memory.stat": "file 0\n",
        },
    )
    limits = memory_limits(root=root)
    # A gibibyte is left in the cgroup, and what this process holds of the rest is its own.
    assert limits.attainable == GIB + 200 * 2**20
    assert default_memory_budget(limits) == limits.attainable - 256 * 2**20


def test_default_budget_is_never_negative() -> None:
    none = ProcessMemory(anonymous=0, file_mapped=0, shared=0, page_tables=0)
    assert default_memory_budget(MemoryLimits(total=GIB, available=2**20, cgroup=None, process=none)) == 0


@pytest.mark.parametrize(("attainable", "margin"), [(GIB, 256 * 2**20), (8 * GIB, GIB // 2), (256 * GIB, 2 * GIB)])
def test_margin_is_a_sixteenth_within_bounds(attainable: int, margin: int) -> None:
    assert memory_margin(attainable) == margin


def nested(version: int, groups: dict[str, tuple[int | str, int, int]]) -> dict[str, str]:
    """Files of nested cgroups: path → (limit, used, page cache of it)."""
    v2 = version == 2
    mounts, member = (V2_MOUNTS, "0::") if v2 else (V1_MOUNTS, "4:memory:")
    base = "sys/fs/cgroup" if v2 else "sys/fs/cgroup/memory"
    files = {"proc/self/mountinfo": mounts, "proc/self/cgroup": f"{member}{max(groups, key=len)}\n"}
    for path, (limit, used, cached) in groups.items():
        files[f"{base}{path}/memory.{'max' if v2 else 'limit_in_bytes'}"] = f"{limit}\n"
        files[f"{base}{path}/memory.{'current' if v2 else 'usage_in_bytes'}"] = f"{used}\n"
        stat = f"file {cached}\nshmem 0\n" if v2 else f"total_cache {cached}\ntotal_shmem 0\n"
        files[f"{base}{path}/memory.stat"] = stat
    return files


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("groups", "tightest", "left"),
    [
        # The pod's limit is the larger one, and nearly used up by others.
        ({"/pod": (10 * GIB, 9 * GIB, 0), "/pod/me": (7 * GIB, GIB, 0)}, "/pod", GIB),
        # What others have in the pod is page cache: the container's own limit is what counts.
        ({"/pod": (10 * GIB, 9 * GIB, 8 * GIB), "/pod/me": (7 * GIB, GIB, 0)}, "/pod/me", 6 * GIB),
        # The one in the middle.
        (
            {
                "/a": (15 * GIB, 10 * GIB, 0),
                "/a/b": (5 * GIB, 3 * GIB, 0),
                "/a/b/c": (4 * GIB, GIB // 2, 0),
            },
            "/a/b",
            2 * GIB,
        ),
        # More is used than is allowed, as after a limit was lowered.
        ({"/pod": (2 * GIB, 3 * GIB, 0), "/pod/me": (GIB, 0, 0)}, "/pod", 0),
    ],
)
def test_the_cgroup_with_the_least_room_counts(
    root: Path, version: int, groups: dict[str, tuple[int, int, int]], tightest: str, left: int
) -> None:
    write(root, **nested(version, groups))
    found = cgroup_memory(root=root)
    assert found is not None
    assert str(found.path).endswith(tightest)
    assert found.headroom == left
    assert memory_limits(root=root).attainable == left + 200 * 2**20
    assert cgroup_memory_limit(root=root) == min(limit for limit, _, _ in groups.values())


def test_v1_limit_that_only_the_statistics_tell(root: Path) -> None:
    """In a container the ancestors' directories are not there, but their limit is in the kernel's figures."""
    files = nested(1, {"/": ("9223372036854771712", GIB, 0)})
    files["sys/fs/cgroup/memory//memory.stat"] = f"hierarchical_memory_limit {3 * GIB}\ntotal_cache 0\n"
    write(root, **files)
    assert cgroup_memory_limit(root=root) == 3 * GIB
    found = cgroup_memory(root=root)
    assert found is not None
    assert found.headroom == 2 * GIB
