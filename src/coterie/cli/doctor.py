"""`coterie doctor`: is this machine ready, and what would make it better?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coterie.cli.console import facts_table, notes, plain_table, print_json, print_table, results
from coterie.cli.options import JsonOption
from coterie.cli.release import examine_release
from coterie.errors import UsageError
from coterie.files.naming import model_path
from coterie.spec import format_bytes

if TYPE_CHECKING:
    from coterie.plan.diagnosis import Diagnosis


def command(
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="PATH",
            show_default=False,
            help="A directory on the disk where stores lie or will, or a store's name. Default: here.",
        ),
    ] = None,
    disk: Annotated[
        str | None,
        typer.Option(
            "--disk",
            metavar="STORE",
            show_default=False,
            help="Find out anew, with this store's experts, how many reads at once suit its disk; takes a second.",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Measure nothing.")] = False,
    transformers: Annotated[
        bool,
        typer.Option("--transformers", help="Only hold the installed transformers against all that is relied on."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Examines this machine: processor, memory, disk, versions; says what could be better.

    Read speed is measured with a temporary file of 128 MiB in PATH, read past the page cache in blocks of the sizes
    that experts have. How many reads at once suit a disk is found out when a model is first opened from it, and kept;
    --disk does it again. The exit code is 1 if a package is outside the supported range.

    With --transformers nothing of that is done. Each thing that Coterie relies on inside transformers is tried on tiny
    models, which takes some seconds. The exit code is 1 if the installed release does any of it otherwise.
    """
    if transformers:
        raise typer.Exit(examine_release(path=path, disk=disk, quick=quick, as_json=as_json))
    place = _place(path if disk is None or path is not None else disk)
    import torch

    from coterie import native
    from coterie.plan.diagnosis import NativeFacts, WaitingFacts, diagnose

    library = native.library()
    with notes().status("examining") as status:
        if disk is not None:
            status.update("trying how many reads at once suit the disk")
            _tune(_place(disk))
        diagnosis = diagnose(
            place,
            torch_capability=torch.backends.cpu.get_cpu_capability(),
            native=NativeFacts(level=None if library is None else library.level_name, why_not=native.why_not()),
            waiting=WaitingFacts(how=native.waiting_words(), turns_for_long=native.turns_for_long()),
            measure=not quick,
            progress=lambda line: status.update(line),
        )
    if as_json:
        print_json(diagnosis)
    else:
        _print_machine(diagnosis)
        _print_reads(diagnosis)
        _print_tunings(diagnosis)
        _print_advice(diagnosis)
    if not all(package.ok for package in diagnosis.packages):
        raise typer.Exit(1)


def _place(path: str | None) -> Path:
    """What a path or the name of a store means.

    Raises:
        UsageError: If nothing is there: the disk of whatever lies above would be measured in its place.
    """
    found = model_path(path or ".")
    if not found.exists():
        raise UsageError(
            f"There is no directory {path!r}.",
            advice="Make it first, or name the folder that it will be in.",
            path=path,
        )
    return found


def _tune(path: Path) -> None:
    """Tries the disk under a store, and keeps the result."""
    from coterie.engine.disk_tuning import tune_anew
    from coterie.store import Store

    tune_anew(Store.open(path))


def _print_machine(diagnosis: Diagnosis) -> None:
    memory, disk = diagnosis.memory, diagnosis.disk
    table = facts_table()

    def row(name: str, value: str) -> None:
        table.add_row(name, value)

    row("system", diagnosis.system)
    row("processor", diagnosis.processor)
    row(
        "instruction set",
        f"{diagnosis.torch_capability} in torch; {' '.join(diagnosis.instruction_sets) or 'none told'}",
    )
    row("native library", diagnosis.native_level or "none: lossy schemes are slow")
    quota = "" if diagnosis.core_quota is None else f", cgroup quota {diagnosis.core_quota}"
    row("cores", f"{diagnosis.cores}{quota}")
    others = "" if diagnosis.cores_of_others is None else f"; other processes use {diagnosis.cores_of_others:.1f} cores"
    if diagnosis.load_average is not None:
        row("load", f"average {diagnosis.load_average:.2f} over a minute{others}")
    row("waiting threads", diagnosis.waiting)
    row("memory", f"{format_bytes(memory.total)}, {format_bytes(memory.available)} available")
    if memory.cgroup is None:
        row("memory cgroup", "no limit")
    else:
        cgroup = memory.cgroup
        row(
            "memory cgroup",
            f"limit {format_bytes(cgroup.limit)}, {format_bytes(cgroup.usage)} used, "
            f"{format_bytes(cgroup.file_cache)} of it page cache (v{cgroup.version}, {cgroup.path})",
        )
    row("default budget", f"{format_bytes(diagnosis.memory_budget)} for the whole process (--memory)")
    works = {True: ", works", False: ", not to be had now", None: ""}[diagnosis.huge_pages_work]
    row("huge pages", f"{diagnosis.huge_pages}{works}" if diagnosis.huge_pages else "none")
    if diagnosis.new_memory is not None:
        row("new memory", f"usable at {format_bytes(int(diagnosis.new_memory))}/s")
    row("disk", f"{disk.filesystem} on {disk.device} at {disk.mount_point or 'unknown'} (holds {disk.path})")
    row("disk space", f"{format_bytes(disk.free)} free of {format_bytes(disk.total)}")
    row(
        "direct I/O", {True: "works", False: "not available", None: "not tried: no permission to write"}[disk.direct_io]
    )
    for package in diagnosis.packages:
        if package.version is None:
            state = "not installed" + (" (optional)" if package.optional else "")
        else:
            state = package.version
        if not package.ok:
            state += f", supported is {package.supported}"
        row(package.name, state)
    print_table(table)


def _print_reads(diagnosis: Diagnosis) -> None:
    if not diagnosis.reads:
        return
    table = plain_table(
        "reads", "block", "at once", "speed", "per read", right=("block", "at once", "speed", "per read")
    )
    for speed in diagnosis.reads:
        table.add_row(
            speed.pattern,
            format_bytes(speed.block),
            str(speed.depth),
            f"{format_bytes(int(speed.bytes_per_second))}/s",
            f"{speed.seconds_per_read * 1e6:.0f} µs",
        )
    results().print()
    print_table(table)
    if not diagnosis.reads[0].direct:
        results().print("Read through the page cache, which was asked to forget the file first.")


def _print_tunings(diagnosis: Diagnosis) -> None:
    for note in diagnosis.tunings:
        tuning = note.tuning
        parts = "whole" if tuning.parts == 1 else f"in {tuning.parts} parts"
        table = plain_table("experts", "at once", "speed", right=("at once", "speed"))
        for trial in tuning.trials:
            way = "one after the other" if trial.lone else "several"
            pieces = "whole" if trial.parts == 1 else f"in {trial.parts} parts"
            table.add_row(f"{way}, {pieces}", str(trial.at_once), f"{format_bytes(int(trial.bytes_per_second))}/s")
        results().print()
        results().print(
            f"Experts of about {format_bytes(tuning.record)} are read {tuning.at_once} at once, {parts} "
            f"(found out on {note.date[:10]}):",
        )
        print_table(table)


def _print_advice(diagnosis: Diagnosis) -> None:
    results().print()
    if not diagnosis.advice:
        results().print("Nothing to improve.", style="green")
    for line in diagnosis.advice:
        results().print(f"- {line}")
