"""Whether the next tokens of several requests to a model go through it in one pass, and why not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from coterie.hf.keymap import KeyMap
from coterie.inspection.planned import SchemedLinear
from coterie.integration import why_apart, why_not_exact
from coterie.native import MOST_ROWS
from coterie.origins import StoreOrigin
from coterie.spec import Batching
from coterie.spec.encodings import NATIVE, schemes_named


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsFacts:
    """How many requests share a forward pass of a model.

    Attributes:
        rows: Requests whose next tokens are computed in one pass at most; 1 if they take turns. None if that is not
            known.
        why: Why they take turns, or why it is not known; None if they share passes.
    """

    rows: int | None
    why: str | None


def rows_facts(
    skeleton: Any,
    keymap: KeyMap,
    linears: Mapping[str, SchemedLinear],
    schemes: Collection[str],
    component: str | None = None,
) -> dict[Batching, RowsFacts]:
    """How many requests share a pass, by batching.

    Args:
        skeleton: The model on the meta device.
        keymap: Where in it the tensors have their places.
        linears: Weights of linear layers that are stored in a scheme, by their names in the checkpoint.
        schemes: Those of the experts, by :func:`deciding_schemes`; with an empty one for experts that are absent.
        component: Of the model, only this component is asked about.
    """
    stored = {
        keymap.dense[name].removesuffix(".weight"): linear.scheme.name
        for name, linear in linears.items()
        if name in keymap.dense
    }
    if component is not None:
        skeleton = skeleton.get_submodule(component)
        inside = f"{component}."
        stored = {path.removeprefix(inside): one for path, one in stored.items() if path.startswith(inside)}
    exact = why_not_exact(skeleton, stored, schemes)
    fast = None if exact is None else why_apart(skeleton)
    return {"exact": _facts(exact), "fast": _facts(fast)}


def deciding_schemes(banks: Iterable[Collection[str]]) -> set[str]:
    """What decides how experts are computed: the lossy schemes, and ``native`` if all experts of a bank are so.

    Args:
        banks: The schemes of the records of each bank.
    """
    found: set[str] = set()
    for names in banks:
        schemes: set[str] = set().union(*map(schemes_named, names))
        found |= schemes - {NATIVE} or schemes
    return found


def unknown_rows(why: str) -> dict[Batching, RowsFacts]:
    """The same of a model that cannot be opened."""
    unknown = RowsFacts(rows=None, why=why)
    return {"exact": unknown, "fast": unknown}


def store_rows(origin: StoreOrigin, component: str | None = None) -> dict[Batching, RowsFacts]:
    """The same of a store's model, or of a component of it."""
    model, manifest = origin.model, origin.store.manifest
    banks = [bank for bank in manifest.banks if component in (None, bank.key.component)]
    schemes = deciding_schemes({record.scheme for record in bank.records.values()} for bank in banks)
    if any(bank.num_experts - len(bank.weightless) > len(bank.records) for bank in banks):
        schemes.add("")
    return rows_facts(model.skeleton, model.keymap, origin.linears, schemes, component)


def _facts(why: str | None) -> RowsFacts:
    return RowsFacts(rows=MOST_ROWS if why is None else 1, why=why)
