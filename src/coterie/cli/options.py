"""Arguments and options that several commands share, as annotations: the same name and meaning everywhere.

Sizes stay texts here; :func:`coterie.spec.parse_bytes` reads them where they are used and explains what is wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from coterie.files.naming import check_name, check_new_name
from coterie.spec import Missing, Prefetch
from coterie.spec.dense_schemes import DenseRequest
from coterie.spec.scheme_names import check_scheme


def named_model(model: str | None) -> str | None:
    """The callback of everything that names a model: what can name none is told at once, before torch is imported.

    Raises:
        CheckpointNotFoundError: If it is neither a path that exists, nor the name of a store, nor of a Hub id's form.
    """
    if model is not None:
        check_name(model)
    return model


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        callback=named_model,
        help="A store (its path, or its name in `coterie stores`), a checkpoint directory, a Hub id, or `bundled` (the "
        "model in the package).",
    ),
]


def known_scheme(scheme: str | None) -> str | None:
    """The callback of everything that names one scheme, or several by trust, which have a colon and are read later.

    Raises:
        UsageError: If there is no such scheme; names the nearest one.
    """
    if scheme is not None and ":" not in scheme:
        check_scheme(scheme)
    return scheme


GroupOption = Annotated[
    int | None,
    typer.Option(
        "--group",
        metavar="N",
        show_default=False,
        help="With --scheme: how many weights share a scale, 32, 64 or 128: fewer are more exact and take more bytes. "
        "--scheme int4 --group 128 is --scheme int4-g128. Default: 64.",
    ),
]


ExpertSchemesOption = Annotated[
    Path | None,
    typer.Option(
        "--expert-schemes",
        metavar="FILE",
        show_default=False,
        help="A JSON file that says how each expert is stored, and each matrix of it, instead of --scheme.",
    ),
]


def known_dense_scheme(given: str | None) -> str | None:
    """The callback of everything that names the schemes of linear layers outside experts.

    Raises:
        UsageError: If a scheme or a part is not known; names the nearest one.
    """
    DenseRequest.parse(given)
    return given


def new_directory(directory: Path) -> Path:
    """The callback of everything that names a directory which is to be made.

    Raises:
        UsageError: If it is a name that cannot be a directory of the user's.
    """
    check_new_name(directory)
    return directory


NewStoreArgument = Annotated[
    Path,
    typer.Argument(metavar="STORE", show_default=False, callback=new_directory, help="The store's directory."),
]

CheckpointArgument = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        show_default=False,
        callback=named_model,
        help="A checkpoint directory, a Hub id, or `bundled` (the model in the package).",
    ),
]

DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Show files, bytes and disk space; write and download no weights.")
]
RestartOption = Annotated[
    bool, typer.Option("--restart", help="Discard an unfinished store that was begun with another request.")
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]

MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        show_default=False,
        help="Ceiling for the whole process, such as 8GiB. Default: what the machine and its cgroup allow.",
    ),
]

RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        show_default=False,
        help="Let the machines of this Ray cluster do the work: HOST:6379, auto for the one of this machine, or local, "
        "which starts one here. What opens a model needs --memory, which is then what each process may take.",
    ),
]

ExpertMemoryOption = Annotated[
    str | None,
    typer.Option(
        "--expert-memory",
        metavar="SIZE",
        show_default=False,
        help="Size of the expert cache alone, such as 2GiB, or 25% of all experts.",
    ),
]

ComponentOption = Annotated[
    str | None,
    typer.Option(
        "--component", metavar="NAME", show_default=False, help="Only this part of the model, such as thinker."
    ),
]

RecordedComponentOption = Annotated[
    str | None, typer.Option("--component", metavar="NAME", show_default=False, help="Only this part of the model.")
]
RecordedPhaseOption = Annotated[
    str | None,
    typer.Option("--phase", metavar="NAME", show_default=False, help="Only prompt tokens, or only generated ones."),
]


def modality_option(help: str) -> Any:
    """``--modality`` of a command that chooses by what a profile has recorded of some modalities."""
    return typer.Option("--modality", metavar="NAME", show_default=False, help=f"{help} May be repeated.")


def domains_option(help: str) -> Any:
    """``--for`` of a command that does something for some domains of what was recorded."""
    return typer.Option("--for", metavar="DOMAINS", show_default=False, help=help)


def against_option(help: str) -> Any:
    """``--against`` of a command that compares a model with the full one."""
    return typer.Option("--against", metavar="FULL", show_default=False, callback=named_model, help=help)


def dense_scheme_option(help: str) -> Any:
    """``--dense-scheme`` of a command that stores linear layers outside experts, or says what would come of it."""
    return typer.Option(
        "--dense-scheme", callback=known_dense_scheme, metavar="SCHEME|PART=SCHEME,...", show_default=False, help=help
    )


PlannedContextOption = Annotated[
    int | None,
    typer.Option(
        "--context",
        "--max-context",
        min=1,
        metavar="TOKENS",
        show_default=False,
        help="Longest sequence to make room for. Default: 4096, or what the model was made for if that is less.",
    ),
]

MissingOption = Annotated[
    Missing | None,
    typer.Option(
        "--missing",
        show_default=False,
        help="What to do when the router picks an expert that a partial store lacks. With fetch, a store on the Hub "
        "is downloaded only as far as experts are picked.",
    ),
]

SourceOption = Annotated[
    str | None,
    typer.Option(
        "--source",
        metavar="CHECKPOINT",
        show_default=False,
        callback=named_model,
        help="With --missing fetch: the checkpoint that the store was made from. Stores made from the Hub know it.",
    ),
]

RevisionOption = Annotated[
    str | None,
    typer.Option("--revision", metavar="REF", show_default=False, help="Branch, tag or commit of a Hub repository."),
]

OfflineOption = Annotated[bool, typer.Option("--offline", help="Use what is on this disk; never ask the Hub.")]

MaxRateOption = Annotated[
    str | None,
    typer.Option(
        "--max-rate",
        metavar="RATE",
        show_default=False,
        help="Read no faster than this over the network, such as 20MB/s.",
    ),
]

ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, metavar="N", show_default=False, help="Threads for compute. Default: torch's."),
]

ExpertsPerTokenOption = Annotated[
    int | None,
    typer.Option(
        "--experts-per-token",
        min=1,
        metavar="K",
        show_default=False,
        help="Use another number of experts per token than the model was trained for. Changes the output.",
    ),
]

DropColdOption = Annotated[
    float | None,
    typer.Option(
        "--drop-cold",
        metavar="TAU",
        show_default=False,
        help="In generating, leave out an expert that would have to be read if its gate weight is below TAU times the "
        "token's highest, such as 0.05. Fewer reads; changes the output.",
    ),
]

MaxContextOption = Annotated[
    int | None,
    typer.Option(
        "--max-context", min=1, metavar="TOKENS", show_default=False, help="Longest sequence to make room for."
    ),
]

EvictionOption = Annotated[
    str,
    typer.Option("--eviction", metavar="POLICY", help="Which expert makes room for another: markov, lru, lfu or lfru."),
]

ProfiledEvictionOption = Annotated[
    str,
    typer.Option(
        "--eviction",
        metavar="POLICY",
        help="Which expert makes room for another: markov, lru, lfu, lfru, or, with --profile, trust.",
    ),
]

PrefetchOption = Annotated[
    Prefetch,
    typer.Option("--prefetch", help="Read what the next layer will probably ask for while the disk would stand still."),
]

VerifyReadsOption = Annotated[
    bool, typer.Option("--verify-reads", help="Check the checksum of every expert that is read.")
]

StoresRootOption = Annotated[
    Path | None,
    typer.Option(
        "--root",
        metavar="DIR",
        show_default=False,
        help="Folder that holds stores. Default: $COTERIE_HOME/stores, else the user's data folder.",
    ),
]

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]

ProfileArgument = Annotated[
    str,
    typer.Argument(
        metavar="PROFILE", show_default=False, help="A profile: a file, or postgresql://USER@HOST/DATABASE."
    ),
]

ProfileModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="FINGERPRINT",
        show_default=False,
        help="Which model, where the profile is about several: its fingerprint, or the beginning of it.",
    ),
]

ProfileOption = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="PROFILE",
        show_default=False,
        help="A profile of the model: a file, or postgresql://USER@HOST/DATABASE.",
    ),
]

ProfileDomainOption = Annotated[
    str | None,
    typer.Option(
        "--domain",
        metavar="DOMAIN",
        show_default=False,
        help="With --profile: expect tokens of this domain. Default: all.",
    ),
]

WarmOption = Annotated[
    str | None,
    typer.Option(
        "--warm",
        metavar="DOMAIN",
        show_default=False,
        help="With --profile: read what this domain of it uses most while the disk has nothing else to do; auto goes "
        "by the request, off reads nothing early. Default: auto.",
    ),
]

PinOption = Annotated[
    str | None,
    typer.Option(
        "--pin",
        metavar="SIZE",
        show_default=False,
        help="With --profile: keep so much of that in memory for good, such as 1GiB, or 25% of the expert cache.",
    ),
]

OPENING_OPTIONS: dict[str, Any] = {
    "memory": MemoryOption,
    "expert_memory": ExpertMemoryOption,
    "component": ComponentOption,
    "missing": MissingOption,
    "source": SourceOption,
    "eviction": ProfiledEvictionOption,
    "prefetch": PrefetchOption,
    "profile": ProfileOption,
    "warm": WarmOption,
    "pin": PinOption,
    "experts_per_token": ExpertsPerTokenOption,
    "drop_cold": DropColdOption,
    "max_context": MaxContextOption,
    "verify_reads": VerifyReadsOption,
    "revision": RevisionOption,
    "offline": OfflineOption,
    "max_rate": MaxRateOption,
    "threads": ThreadsOption,
}
"""The options of commands that open a model, by the fields of :class:`coterie.spec.opening.Opening` that they fill."""
