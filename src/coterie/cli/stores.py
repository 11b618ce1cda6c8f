"""`coterie stores`: list the stores on this machine, remove one, or take over its edited files."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from coterie.cli.console import plain_table, print_json, print_note, print_table
from coterie.cli.options import JsonOption, StoresRootOption, YesOption
from coterie.errors import UsageError
from coterie.spec import format_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from coterie.cli.catalog import StoreEntry


def command(
    action: Annotated[
        Literal["list", "remove", "refresh"],
        typer.Argument(metavar="ACTION", help="`list`, or `remove` or `refresh` with a NAME."),
    ] = "list",
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", show_default=False, help="The store to remove or refresh: its name or path."),
    ] = None,
    root: StoresRootOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Lists the stores of a folder with sizes and completeness, removes one, or takes over its edited small files.

    A store is complete when it has every expert of the model, and partial when it was extracted with some of them.
    Nothing is read but manifests and file sizes: checksums are compared by `coterie verify`.

    A store refuses to open when a file beside its weights was changed. `refresh` says that it was changed on purpose: a
    chat template, generation_config.json, a tokenizer; all but config.json. Nothing is extracted again.
    """
    from coterie.cli.catalog import list_stores
    from coterie.files.home import stores_folder

    folder = root if root is not None else stores_folder()
    if action == "list":
        if name is not None:
            raise UsageError(f"`coterie stores list` takes no name, but {name!r} was given.", advice="Use --root DIR.")
        entries = list_stores(folder)
        if as_json:
            print_json({"schema_version": 1, "folder": folder, "stores": entries})
        else:
            _print_entries(folder, entries)
        return
    if name is None:
        raise UsageError(f"`coterie stores {action}` needs the name of a store.", advice="List them: `coterie stores`.")
    if action == "refresh":
        _refresh(folder, name, as_json)
        return
    _remove(folder, name, yes, as_json)


def _remove(folder: Path, name: str, yes: bool, as_json: bool) -> None:
    from coterie.cli.catalog import find_store, remove_store

    entry = find_store(folder, name)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(
                f"Removing {entry.path} has to be confirmed.", advice="Pass --yes where nobody can answer."
            )
        typer.confirm(f"Remove {entry.path} ({entry.state}, {format_bytes(entry.nbytes)})?", abort=True, err=True)
    remove_store(entry)
    if as_json:
        print_json({"schema_version": 1, "removed": entry})
    else:
        print_note(f"Removed {entry.path}: {format_bytes(entry.nbytes)} freed.")


def _refresh(folder: Path, name: str, as_json: bool) -> None:
    from coterie.cli.catalog import find_store
    from coterie.origins.side_files import side_files
    from coterie.store import refresh_files

    path = find_store(folder, name).path
    done = refresh_files(path, side_files(path))
    if as_json:
        print_json({"schema_version": 1, "store": path, "refreshed": done})
        return
    for what, files in (("changed", done.changed), ("new", done.added), ("gone", done.removed)):
        for file in files:
            print_note(f"{file}: {what}")
    if not (done.changed or done.added or done.removed):
        print_note(f"{path} has the files that it knows.")


def _print_entries(folder: Path, entries: list[StoreEntry]) -> None:
    if not entries:
        print_note(f"No stores in {folder}. Make one: coterie extract CHECKPOINT {folder / 'NAME'}")
        return
    table = plain_table("name", "state", "experts", "size", "model", "made from", right=("experts", "size"))
    for entry in entries:
        experts = "" if entry.experts_present is None else f"{entry.experts_present}/{entry.experts_total}"
        table.add_row(
            entry.name, entry.state, experts, format_bytes(entry.nbytes), entry.model or "", entry.source or ""
        )
    print_table(table)
    print_note(f"{len(entries)} in {folder}, {format_bytes(sum(entry.nbytes for entry in entries))} in all")
    for entry in entries:
        if entry.problem is not None:
            print_note(f"{entry.name}: {entry.problem}")
