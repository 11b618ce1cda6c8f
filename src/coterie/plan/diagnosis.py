"""Is this machine ready? Facts about it and advice drawn from them, for `coterie doctor` and for programs."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import NormalizedName, canonicalize_name
from packaging.version import Version

from coterie.errors import UsageError
from coterie.hf.releases import newer_note, newer_than_tested
from coterie.plan.busyness import ProcessorTimes, cores_of_others, load_average, processor_times
from coterie.plan.cpu import core_quota, instruction_sets, processor_name, transparent_huge_pages, usable_cores
from coterie.plan.disk import DiskFacts, ReadSpeed, disk_facts, measure_reads
from coterie.plan.disk_notes import DiskNotes, Note
from coterie.plan.huge_pages import huge_pages_work
from coterie.plan.machine import MemoryLimits, default_memory_budget, memory_limits
from coterie.plan.new_memory import SLOW, new_memory_bandwidth
from coterie.spec import format_bytes, install_advice

SCHEMA_VERSION = 1

_NETWORK_FILESYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs"})
_REPORTED = ("torch", "transformers", "safetensors", "huggingface_hub", "numpy")
_OPTIONAL = ("torchvision", "av")
_LOOK_S = 0.25
"""Seconds for which other processes are looked at."""
_BUSY = 0.25
"""Processors that others use from which that is worth a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageFacts:
    """A package that results depend on.

    Attributes:
        name: Its name.
        version: The installed version, or None if it is missing.
        supported: The range that Coterie states, such as ``>=5.7,<6``; empty where any will do.
        ok: Whether it is installed within that range, or missing though optional.
        optional: Whether Coterie does without it.
    """

    name: str
    version: str | None
    supported: str
    ok: bool
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeFacts:
    """The native library.

    Attributes:
        level: The instruction set that it computes with, or None if there is no library.
        why_not: Why there is none, or None.
    """

    level: str | None
    why_not: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingFacts:
    """How threads that compute wait for each other.

    Attributes:
        how: In a few words.
        turns_for_long: Whether they keep their processors meanwhile, whatever other processes do.
    """

    how: str
    turns_for_long: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Everything that `coterie doctor` shows; sizes in bytes.

    Attributes:
        schema_version: Version of this record.
        system: Operating system and release.
        processor: Model name.
        instruction_sets: Flags of the processor that decide about kernels.
        torch_capability: The instruction set that torch chose (``AVX512``, ``AVX2``, ``DEFAULT``, ...).
        native_level: What the native library computes with (``amx``, ``avx512bf16``, ``avx2``; ``dotprod``,
            ``neon``; ``default``); None if there is none.
        cores: Logical processors that this process may use.
        core_quota: Processors' worth of time that the cgroup grants, or None without a quota.
        waiting: How threads that compute wait for each other, in a few words.
        load_average: Processes that wanted to run, averaged over the last minute; None where the system does not say.
        cores_of_others: Processors' worth of time that other processes use; None if that was not measured.
        memory: The limits found.
        memory_budget: The budget that is used where none is stated.
        huge_pages: Setting of transparent huge pages, or None where there are none.
        huge_pages_work: Whether memory that asked for one got one just now; None where that cannot be told.
        new_memory: Bytes per second at which memory that nothing uses yet becomes usable; None if not measured.
        disk: The filesystem asked about.
        reads: Measured read speeds; empty if not asked for.
        tunings: What was found out, now or earlier, about reading experts from that disk.
        packages: Versions, with the supported ranges.
        advice: What could be better, one sentence or two each; empty if all is well.
    """

    schema_version: int
    system: str
    processor: str
    instruction_sets: tuple[str, ...]
    torch_capability: str
    native_level: str | None
    cores: int
    core_quota: int | None
    waiting: str
    load_average: float | None
    cores_of_others: float | None
    memory: MemoryLimits
    memory_budget: int
    huge_pages: str | None
    huge_pages_work: bool | None
    new_memory: float | None
    disk: DiskFacts
    reads: tuple[ReadSpeed, ...]
    tunings: tuple[Note, ...]
    packages: tuple[PackageFacts, ...]
    advice: tuple[str, ...]


def diagnose(
    path: Path,
    *,
    torch_capability: str,
    native: NativeFacts,
    waiting: WaitingFacts,
    measure: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Examines this machine.

    Args:
        path: Directory whose disk is examined: where stores lie, or will.
        torch_capability: ``torch.backends.cpu.get_cpu_capability()``; passed in because this layer knows no torch.
        native: What :mod:`coterie.native` says of itself; passed in likewise.
        waiting: What it says of threads; likewise.
        measure: Whether to measure read speed, which writes and reads a temporary file of 128 MiB, and new memory.
        progress: Called with a line about what is being measured.
    """
    before = processor_times()
    memory = memory_limits()
    budget = default_memory_budget(memory)
    disk = disk_facts(path)
    packages = package_facts()
    huge_pages, works = transparent_huge_pages(), huge_pages_work()
    quota, cores, sets = core_quota(), usable_cores(), instruction_sets()
    reads: tuple[ReadSpeed, ...] = ()
    unmeasured: tuple[str, ...] = ()
    new_memory = others = None
    if measure:
        if progress is not None:
            progress("looking at what other processes do")
        others = _others(before)
        if progress is not None:
            progress("trying how fast new memory becomes usable")
        new_memory = new_memory_bandwidth(memory.available)
        try:
            reads = tuple(measure_reads(disk.path, progress=progress))
        except UsageError as error:
            unmeasured = (f"Read speed was not measured: {error}",)
    return Diagnosis(
        schema_version=SCHEMA_VERSION,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=processor_name(),
        instruction_sets=sets,
        torch_capability=torch_capability,
        native_level=native.level,
        cores=cores,
        core_quota=quota,
        waiting=waiting.how,
        load_average=load_average(),
        cores_of_others=others,
        memory=memory,
        memory_budget=budget,
        huge_pages=huge_pages,
        huge_pages_work=works,
        new_memory=new_memory,
        disk=disk,
        reads=reads,
        tunings=tuple(DiskNotes().all_of(disk.path)),
        packages=packages,
        advice=(
            *_package_advice(packages),
            *_processor_advice(torch_capability, sets, cores, quota),
            *_waiting_advice(waiting, cores, others),
            *_native_advice(native),
            *_memory_advice(memory, budget, huge_pages, works),
            *_new_memory_advice(new_memory),
            *_disk_advice(disk, reads),
            *unmeasured,
        ),
    )


def package_facts() -> tuple[PackageFacts, ...]:
    """Python and the packages that results depend on, with the ranges that Coterie's own metadata states."""
    ranges: dict[NormalizedName, SpecifierSet] = {}
    for text in metadata.requires("coterie") or []:
        requirement = Requirement(text)
        ranges[canonicalize_name(requirement.name)] = requirement.specifier
    python_range = SpecifierSet(metadata.metadata("coterie")["Requires-Python"])
    python_version = ".".join(map(str, sys.version_info[:3]))
    facts = [
        PackageFacts(
            name="python",
            version=python_version,
            supported=str(python_range),
            ok=python_range.contains(python_version, prereleases=True),
        )
    ]
    for name in (*_REPORTED, *_OPTIONAL):
        optional = name in _OPTIONAL
        supported = ranges.get(canonicalize_name(name), SpecifierSet())
        installed = _installed_version(name)
        within = installed is not None and supported.contains(Version(installed), prereleases=True)
        ok = within or (optional and installed is None)
        facts.append(PackageFacts(name=name, version=installed, supported=str(supported), ok=ok, optional=optional))
    return tuple(facts)


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _state(package: PackageFacts) -> str:
    if package.version is None:
        return f"{package.name} is not installed."
    return f"{package.name} {package.version} is outside the supported range {package.supported}."


def _package_advice(packages: tuple[PackageFacts, ...]) -> list[str]:
    advice = [
        f"{_state(package)} Install one within the range: pip install '{package.name}{package.supported}'."
        for package in packages
        if not package.ok
    ]
    advice += [
        newer_note(package.version)
        for package in packages
        if package.name == "transformers" and package.version is not None and newer_than_tested(package.version)
    ]
    absent = {package.name for package in packages if package.optional and package.version is None}
    if "av" in absent:
        advice.append(
            f"PyAV is not installed: videos, and sounds in M4A and other containers, need it. {install_advice('video')}"
        )
    if "torchvision" in absent:
        advice.append(
            "torchvision is not installed: models with processors of their own need it for what they see and hear; "
            f"Qwen's do not. {install_advice('torchvision')}"
        )
    return advice


def _processor_advice(capability: str, sets: tuple[str, ...], cores: int, quota: int | None) -> list[str]:
    advice = []
    if "avx2" in sets and not capability.upper().startswith("AVX"):
        advice.append(
            f"torch runs with the instruction set {capability!r} although the processor has AVX2 or better: "
            "unset ATEN_CPU_CAPABILITY if it is set."
        )
    if quota is not None and quota < cores:
        advice.append(
            f"The cgroup grants {quota} processor(s) of {cores} visible: pass --threads {quota}, "
            "as more threads than that wait for each other."
        )
    return advice


def _others(before: ProcessorTimes | None) -> float | None:
    """Processors that other processes use, over :data:`_LOOK_S` seconds."""
    time.sleep(_LOOK_S)
    after = processor_times()
    return None if before is None or after is None else cores_of_others(before, after)


def _waiting_advice(waiting: WaitingFacts, cores: int, others: float | None) -> list[str]:
    if others is None or others < _BUSY:
        return []
    free = max(1, round(cores - others))
    advice = f"Other processes keep {others:.1f} of {cores} processors busy: a model has only the rest"
    if not waiting.turns_for_long:
        return [f"{advice}."]
    return [
        f"{advice}, and here threads that wait for each other keep theirs, too, which can make it several times "
        f"slower: pass --threads {free}, or set OMP_WAIT_POLICY=passive."
    ]


def _native_advice(native: NativeFacts) -> list[str]:
    if native.level is not None:
        return []
    return [f"Models in lossy schemes are computed by torch alone, many times slower. {native.why_not}"]


def _memory_advice(memory: MemoryLimits, budget: int, huge_pages: str | None, works: bool | None) -> list[str]:
    advice = []
    if budget < 2**30:
        advice.append(
            f"The default memory budget is only {format_bytes(budget)}: free some memory, raise the cgroup limit, "
            "or state --memory yourself."
        )
    if memory.cgroup is not None and memory.cgroup.limit < memory.total:
        advice.append(
            f"A cgroup limits this process to {format_bytes(memory.cgroup.limit)}; "
            "a --memory above that would end in the out-of-memory killer."
        )
    if huge_pages == "never":
        advice.append(
            "Transparent huge pages are off: the expert arena will use 4 KiB pages. To allow them: "
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled (as root)."
        )
    elif huge_pages is not None and works is False:
        advice.append(
            "Memory that asks for a huge page does not get one, though they are on: free memory is in too small "
            "pieces, or this process was told to do without (prctl PR_SET_THP_DISABLE)."
        )
    limit = _address_space_limit()
    if limit is not None:
        advice.append(
            f"The address space is limited to {format_bytes(limit)} (ulimit -v). The arena reserves addresses it may "
            "never use; limit memory with a cgroup or --memory instead."
        )
    return advice


def _new_memory_advice(bandwidth: float | None) -> list[str]:
    if bandwidth is None or bandwidth >= SLOW:
        return []
    return [
        f"New memory becomes usable at {format_bytes(int(bandwidth))}/s, as in a virtual machine that gives unused "
        "memory back to its host: the cache of experts grows while processors are idle, and hits less until it is full."
    ]


def _address_space_limit() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def _disk_advice(disk: DiskFacts, reads: tuple[ReadSpeed, ...]) -> list[str]:
    advice = []
    if disk.filesystem in _NETWORK_FILESYSTEMS:
        advice.append(
            f"{disk.path} lies on a network filesystem ({disk.filesystem}): every missed expert crosses the network. "
            "Keep stores on a local SSD."
        )
    elif disk.filesystem in {"tmpfs", "ramfs"}:
        advice.append(
            f"{disk.path} lies in memory ({disk.filesystem}): a store there takes the memory that a budget should save."
        )
    if disk.direct_io is None:
        advice.append(f"{disk.path} cannot be written by this user, so direct reads were not tried.")
    elif not disk.direct_io:
        advice.append(
            f"{disk.path} has no direct I/O ({disk.filesystem}): experts are read through the page cache and dropped "
            "from it afterwards, which is slower."
        )
    random_reads = [speed for speed in reads if speed.pattern == "random"]
    if random_reads and max(speed.bytes_per_second for speed in random_reads) < 300e6:
        advice.append(
            "Random reads are slow here, as on a hard disk or a busy device: tokens will wait for experts. "
            "Give the cache more memory, or put stores on an SSD."
        )
    return advice
