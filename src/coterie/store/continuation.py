"""Deciding what a writer that opens a directory goes on with: nothing yet, an unfinished store, a finished one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from coterie.errors import StoreError
from coterie.store import names
from coterie.store.disk import Disk
from coterie.store.journal import Journal, JournalHeader
from coterie.store.manifest import Manifest
from coterie.store.manifest_file import check_file, is_store
from coterie.store.plan import StorePlan
from coterie.store.sweep import sweep, sweep_partial


def refuse_foreign(root: Path) -> None:
    """Refuses a directory that is not empty and that no writer has begun.

    Raises:
        StoreError: If there is a file in the way, or a directory with other things in it.
    """
    if not root.exists():
        return
    if not root.is_dir():
        raise StoreError(f"{root} is a file; a store is a directory.", advice="Choose another path.", path=root)
    # A writer killed between taking the lock and writing its journal leaves these.
    harmless = {names.LOCK, names.partial_file(names.JOURNAL)}
    found = sorted(path.name for path in root.iterdir() if path.name not in harmless)
    if found and not is_store(root) and names.JOURNAL not in found:
        raise StoreError(
            f"{root} is not empty and is not a store: it holds {found[0]!r}.",
            advice="Choose a new or empty directory; nothing was changed.",
            path=root,
            found=found[0],
        )


def check_growth(root: Path, base: Manifest, plan: StorePlan) -> None:
    """Refuses a plan that does not belong to the finished store, or experts that it has in another form.

    Raises:
        StoreError: Naming the first difference.
        StoreFormatError: If a file of the store is missing or has another size.
    """

    def refuse(what: str, advice: str) -> StoreError:
        return StoreError(f"{root} cannot be grown: {what}.", advice=advice, path=root)

    another = "Write to another directory."
    if base.source.integrity != plan.source.integrity:
        raise refuse(f"it was made from {base.source.name!r}, and that checkpoint differs from this one", another)
    if base.model != plan.model:
        raise refuse(f"it holds {base.model}, not {plan.model}", another)
    if base.dense_schemes != plan.dense_schemes:
        raise refuse(
            f"its linear layers outside experts are there as {base.dense_schemes}, not {plan.dense_schemes}",
            "What is there is never rewritten in place; write to another directory.",
        )
    unknown = set(plan.files) - {facts.file for facts in base.files}
    if unknown:
        raise refuse(f"the file {min(unknown)!r} is not in it, and only experts can be added", another)
    for name, layout in plan.layouts.items():
        if base.layouts.get(name, layout) != layout:
            raise refuse(f"its layout {name!r} has other fields", another)
    for bank_plan in plan.banks:
        bank = base.banks_by_key.get(bank_plan.key)
        if bank is None:
            raise refuse(f"it has no bank {bank_plan.key}", another)
        facts = (bank_plan.num_experts, bank_plan.top_k, bank_plan.sources, bank_plan.weightless)
        if facts != (bank.num_experts, bank.top_k, bank.sources, bank.weightless):
            raise refuse(f"the bank {bank_plan.key} differs in experts, top-k or checkpoint keys", another)
        for planned in bank_plan.experts:
            record = bank.records.get(planned.expert)
            if record is not None and (record.scheme, record.layout) != (planned.scheme, planned.layout.name):
                raise refuse(
                    f"expert {bank.key.expert(planned.expert)} is there as {record.scheme} ({record.layout}), not "
                    f"{planned.scheme} ({planned.layout.name})",
                    "An expert is never rewritten in place; write to another directory.",
                )
    for file, nbytes in base.file_sizes.items():
        check_file(root, file, nbytes)


def begin_journal(
    disk: Disk,
    plan: StorePlan,
    parts: Mapping[str, str],
    base: Manifest | None,
    base_digest: str,
    *,
    restart: bool,
    needed: bool,
) -> Journal | None:
    """Resumes the journal that belongs to this plan, or clears what another left and starts a new one.

    Args:
        disk: The locked directory.
        plan: What is to be written.
        parts: Digests of the plan's parts.
        base: Manifest of the finished store, if there is one.
        base_digest: Its digest, else empty.
        restart: Discard an unfinished store of another plan.
        needed: Whether there is anything to write.

    Returns:
        The journal, or None if nothing is to be written.

    Raises:
        StoreError: If an unfinished store of another plan is there and ``restart`` is false.
    """
    old = Journal.resume(disk)
    exists = disk.path(names.JOURNAL).exists()
    if base is None and exists and not restart:
        refuse_other_plan(disk.root, None if old is None else old.header, parts)
    continued = old is not None and not restart and old.header.base == base_digest and old.header.parts == dict(parts)
    if continued and needed:
        sweep_partial(disk, plan.files)
        return old
    side_files = set(plan.files if base is None else ()) | set(old.header.files if old is not None else ())
    keep = {names.MANIFEST} | (set() if base is None else set(base.file_sizes))
    sweep(disk, keep=keep, side_files=side_files, dense=base is None)
    if not needed:
        if exists:
            disk.remove(names.JOURNAL)
            disk.sync(disk.root)
        return None
    return Journal.create(disk, JournalHeader(base=base_digest, parts=dict(parts), files=tuple(sorted(plan.files))))


def refuse_other_plan(root: Path, header: JournalHeader | None, parts: Mapping[str, str]) -> None:
    """Refuses an unfinished store that was begun with another plan.

    Args:
        root: The directory.
        header: What its journal says; None if that is unreadable.
        parts: Digests of the parts of the plan that is to be written.

    Raises:
        StoreError: Saying what differs.
    """
    advice = "Repeat the command that began it, choose another directory, or discard what is there (--restart)."
    if header is None or header.base:
        what = "whose journal is unreadable" if header is None else "whose manifest has been removed"
    else:
        named = [*parts, *(name for name in header.parts if name not in parts)]
        different = [name for name in named if header.parts.get(name) != parts.get(name)]
        if not different:
            return
        what = f"that was begun with another plan: the {different[0]} differ"
    raise StoreError(f"{root} holds an unfinished store {what}.", advice=advice, path=root)
