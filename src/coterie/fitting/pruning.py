"""The model without the experts that matter least: how large it will be, and how it is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from coterie.extraction import ProgressCallback, prune
from coterie.extraction.keeping import Keep
from coterie.extraction.pruning import PruneRequest, pruned_origin
from coterie.fitting.making import Source
from coterie.fitting.report import ProfileFacts, Pruned, TakenOut
from coterie.origins.selection import Selection
from coterie.spec import BankKey


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptShares:
    """How much of a model's experts stays.

    Attributes:
        every: Share of the bytes of all experts.
        components: Component → share of the bytes of its experts.
    """

    every: float = 1.0
    components: Mapping[str, float]

    @classmethod
    def of(cls, source: Source) -> KeptShares:
        """What a request asks for of a model. Reads no expert and no profile.

        Raises:
            UsageError: If a router would be left too few experts, or all would be kept.
            UnsupportedError: If the model depends on its number of experts in a way that is not known.
        """
        request, origin = source.request, source.origin
        if request.keep is None:
            return cls(components={})
        drawn = PruneRequest(
            by="random", profile=None, domains=(), modalities=(), seed=0, ranking=request.prune_ranking
        )
        after = pruned_origin(origin, Keep.parse(request.keep), drawn).model.banks
        before_of: Counter[str] = Counter()
        after_of: Counter[str] = Counter()
        for key, bank in origin.model.banks.items():
            before_of[key.component] += bank.layout.nbytes * bank.bank.num_experts
            after_of[key.component] += bank.layout.nbytes * after[key].bank.num_experts
        return cls(
            every=after_of.total() / max(1, before_of.total()),
            components={name: after_of[name] / max(1, nbytes) for name, nbytes in before_of.items()},
        )


def make_pruned(
    source: Source, store: Path, profile: str | Path, facts: ProfileFacts, progress: ProgressCallback | None
) -> Pruned:
    """Makes the pruned store, or goes on with it.

    Args:
        source: The model.
        store: The directory.
        profile: What its experts do.
        facts: The same for the card.
        progress: Told about bytes and time left.

    Raises:
        CoterieError: As :func:`coterie.prune` does.
    """
    request = source.request
    assert request.keep is not None, "something is to be pruned"
    report = prune(
        source.model,
        store,
        keep=request.keep,
        by=request.prune_by,
        profile=profile,
        domains=request.domains or None,
        modalities=request.modalities or None,
        ranking=request.prune_ranking,
        component=None if source.is_store else request.component,
        revision=request.revision,
        offline=request.offline,
        progress=progress,
    )
    return Pruned(
        keep=str(request.keep),
        by=request.prune_by,
        ranking=request.prune_ranking,
        profile=facts,
        banks=_taken_out(source, store),
        store_nbytes=sum(file.nbytes for file in report.files),
        seconds=report.seconds,
    )


def _taken_out(source: Source, store: Path) -> tuple[TakenOut, ...]:
    """The experts of each bank that are gone, by their numbers in the model that was pruned first."""
    before, after = Selection.read(source.origin.directory), Selection.read(store)
    assert after is not None, "a pruned store says what it has"

    def had(key: BankKey) -> range | tuple[int, ...]:
        kept = None if before is None else before.banks.get(key)
        there = source.origin.model.banks[key].bank.num_experts
        is_its_own = kept is not None and kept.before == after.banks[key].before and len(kept.experts) == there
        return kept.experts if kept is not None and is_its_own else range(there)

    found = []
    for key, bank in sorted(after.banks.items()):
        gone = sorted(set(had(key)) - set(bank.experts))
        found.append(
            TakenOut(
                component=key.component, layer=key.layer, bank=key.bank, kept=len(bank.experts), experts=tuple(gone)
            )
        )
    return tuple(found)
