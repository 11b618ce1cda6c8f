from importlib import metadata
from pathlib import Path

import pytest

from coterie.errors import UsageError
from coterie.plan import diagnosis
from coterie.plan.diagnosis import NativeFacts, PackageFacts, WaitingFacts, diagnose, package_facts
from coterie.plan.disk import DiskFacts, ReadSpeed
from coterie.plan.machine import CgroupMemory, MemoryLimits, ProcessMemory

GIB = 2**30
IDLE = ProcessMemory(anonymous=0, file_mapped=0, shared=0, page_tables=0)
GOOD_DISK = DiskFacts(
    path=Path("/data"), filesystem="ext4", mount_point="/", device="/dev/sda", total=9, free=8, direct_io=True
)
NATIVE = NativeFacts(level="avx2", why_not=None)
WAITING = WaitingFacts(how="asleep", turns_for_long=False)


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine about which there is nothing to say."""
    limits = MemoryLimits(total=16 * GIB, available=12 * GIB, cgroup=None, process=IDLE)
    package = PackageFacts(name="torch", version="2.9", supported=">=2.9", ok=True)
    monkeypatch.setattr(diagnosis, "memory_limits", lambda: limits)
    monkeypatch.setattr(diagnosis, "disk_facts", lambda _path: GOOD_DISK)
    monkeypatch.setattr(diagnosis, "package_facts", lambda: (package,))
    monkeypatch.setattr(diagnosis, "transparent_huge_pages", lambda: "madvise")
    monkeypatch.setattr(diagnosis, "huge_pages_work", lambda: True)
    monkeypatch.setattr(diagnosis, "core_quota", lambda: None)
    monkeypatch.setattr(diagnosis, "usable_cores", lambda: 4)
    monkeypatch.setattr(diagnosis, "instruction_sets", lambda: ("avx2",))
    monkeypatch.setattr(diagnosis, "_others", lambda before: 0.0)
    monkeypatch.setattr(diagnosis, "_address_space_limit", lambda: None)
    return monkeypatch


def advice(capability: str = "AVX2") -> str:
    return "\n".join(
        diagnose(Path(), torch_capability=capability, native=NATIVE, waiting=WAITING, measure=False).advice
    )


def test_a_healthy_machine_gets_no_advice(healthy: pytest.MonkeyPatch) -> None:
    assert advice() == ""


def test_a_missing_native_library_is_named_with_its_reason(healthy: pytest.MonkeyPatch) -> None:
    absent = NativeFacts(level=None, why_not="This installation has no libcoterie.so.")
    found = diagnose(Path(), torch_capability="AVX2", native=absent, waiting=WAITING, measure=False)
    assert found.native_level is None
    assert "This installation has no libcoterie.so" in "".join(found.advice)


def test_slow_instruction_set_only_where_a_better_one_exists(healthy: pytest.MonkeyPatch) -> None:
    assert "ATEN_CPU_CAPABILITY" in advice("DEFAULT")
    assert "ATEN_CPU_CAPABILITY" in advice("NO AVX")
    healthy.setattr(diagnosis, "instruction_sets", lambda: ("asimd",))
    assert advice("DEFAULT") == ""


def test_core_quota_advises_threads(healthy: pytest.MonkeyPatch) -> None:
    healthy.setattr(diagnosis, "core_quota", lambda: 2)
    assert "--threads 2" in advice()


def test_cgroup_limit_and_small_budget(healthy: pytest.MonkeyPatch) -> None:
    cgroup = CgroupMemory(version=2, path=Path("/c"), limit=GIB, usage=0, file_cache=0)
    limits = MemoryLimits(total=16 * GIB, available=12 * GIB, cgroup=cgroup, process=IDLE)
    healthy.setattr(diagnosis, "memory_limits", lambda: limits)
    text = advice()
    assert "limits this process to 1.00 GiB" in text
    assert "only 768.00 MiB" in text


def test_huge_pages_and_address_space(healthy: pytest.MonkeyPatch) -> None:
    healthy.setattr(diagnosis, "transparent_huge_pages", lambda: "never")
    healthy.setattr(diagnosis, "_address_space_limit", lambda: 8 * GIB)
    assert "huge pages are off" in advice()
    assert "8.00 GiB (ulimit -v)" in advice()


@pytest.mark.parametrize(
    ("filesystem", "direct_io", "expected"),
    [
        ("nfs4", True, "network filesystem"),
        ("tmpfs", True, "lies in memory"),
        ("overlay", False, "no direct I/O (overlay)"),
        ("ext4", None, "cannot be written"),
    ],
)
def test_disk_advice(healthy: pytest.MonkeyPatch, filesystem: str, direct_io: bool | None, expected: str) -> None:
    disk = DiskFacts(
        path=Path("/data"), filesystem=filesystem, mount_point="/", device="d", total=9, free=8, direct_io=direct_io
    )
    healthy.setattr(diagnosis, "disk_facts", lambda _path: disk)
    assert expected in advice()


@pytest.mark.parametrize(("seconds", "slow"), [(1.0, False), (10.0, True)])
def test_slow_random_reads(healthy: pytest.MonkeyPatch, seconds: float, slow: bool) -> None:
    speed = ReadSpeed(pattern="random", block=2**20, depth=4, nbytes=10**9, seconds=seconds, direct=True)
    healthy.setattr(diagnosis, "measure_reads", lambda *_args, **_options: [speed])
    text = "\n".join(diagnose(Path(), torch_capability="AVX2", native=NATIVE, waiting=WAITING, measure=True).advice)
    assert ("Random reads are slow" in text) is slow


def test_a_disk_that_cannot_be_measured_leaves_the_rest(healthy: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> list[ReadSpeed]:
        raise UsageError("/data cannot be written")

    healthy.setattr(diagnosis, "measure_reads", refuse)
    report = diagnose(Path(), torch_capability="AVX2", native=NATIVE, waiting=WAITING, measure=True)
    assert report.reads == ()
    assert any("not measured: /data cannot be written" in line for line in report.advice)
    assert report.packages


def test_packages_are_held_against_the_ranges_of_our_own_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {package.name: package for package in package_facts()}
    assert facts["python"].ok
    assert facts["torch"].ok
    assert facts["torch"].version == metadata.version("torch")
    assert facts["transformers"].supported
    assert facts["torchvision"].optional

    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "4.57.0" if name == "transformers" else real(name))
    facts = {package.name: package for package in package_facts()}
    assert not facts["transformers"].ok
    assert "transformers 4.57.0 is outside" in diagnosis._package_advice(tuple(facts.values()))[0]


def test_huge_pages_that_are_on_and_not_to_be_had(healthy: pytest.MonkeyPatch) -> None:
    healthy.setattr(diagnosis, "huge_pages_work", lambda: False)
    assert "does not get one" in advice()
    healthy.setattr(diagnosis, "huge_pages_work", lambda: None)
    assert advice() == ""


def test_new_memory_that_is_slow_to_come(healthy: pytest.MonkeyPatch) -> None:
    healthy.setattr(diagnosis, "measure_reads", lambda *_args, **_options: [])
    for bandwidth, told in ((4e8, True), (4e9, False)):
        healthy.setattr(diagnosis, "new_memory_bandwidth", lambda available, bandwidth=bandwidth: bandwidth)
        found = diagnose(Path(), torch_capability="AVX2", native=NATIVE, waiting=WAITING)
        assert found.new_memory == bandwidth
        assert ("New memory becomes usable at 381.47 MiB/s, as in" in "".join(found.advice)) is told
    assert diagnose(Path(), torch_capability="AVX2", native=NATIVE, waiting=WAITING, measure=False).new_memory is None


@pytest.mark.parametrize(
    ("others", "turns_for_long", "said"),
    [
        (0.1, True, ()),
        (None, True, ()),
        (1.6, False, ("1.6 of 4 processors busy",)),
        (1.6, True, ("1.6 of 4 processors busy", "--threads 2", "OMP_WAIT_POLICY=passive")),
        (4.0, True, ("--threads 1,",)),
    ],
)
def test_busy_processors_are_told_of(
    healthy: pytest.MonkeyPatch, others: float | None, turns_for_long: bool, said: tuple[str, ...]
) -> None:
    healthy.setattr(diagnosis, "_others", lambda before: others)
    healthy.setattr(diagnosis, "new_memory_bandwidth", lambda available: 1e12)
    healthy.setattr(diagnosis, "measure_reads", lambda path, progress: [])
    waiting = WaitingFacts(how="somehow", turns_for_long=turns_for_long)
    found = diagnose(Path(), torch_capability="AVX2", native=NATIVE, waiting=waiting)
    assert (found.cores_of_others, found.waiting) == (others, "somehow")
    told = " ".join(line for line in found.advice if "processors" in line)
    assert bool(told) == bool(said)
    assert all(part in told for part in said)
    assert ("OMP_WAIT_POLICY" in told) == (turns_for_long and bool(said))
