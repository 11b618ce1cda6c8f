"""What keeps a store from being written as a checkpoint."""

from __future__ import annotations

from collections import defaultdict

from coterie.errors import UsageError
from coterie.origins import StoreOrigin
from coterie.spec.encodings import NATIVE


def check_exportable(origin: StoreOrigin, *, dequantise: bool) -> bool:
    """Refuses a store of which no standard checkpoint can be made.

    Args:
        origin: The store.
        dequantise: Whether weights in a scheme of ours may be dequantised.

    Returns:
        Whether it has such weights.

    Raises:
        UsageError: Naming the reason.
    """
    path, manifest = origin.directory, origin.store.manifest
    if manifest.model.component is not None:
        raise UsageError(
            f"{path} holds only the {manifest.model.component} of a model, and its configuration describes all of it.",
            advice="Make a store of the whole model, and export that.",
            component=manifest.model.component,
        )
    absent = sum(len(bank.absent) for bank in origin.store.banks.values())
    if absent:
        raise UsageError(
            f"{path} is a partial store: {absent} experts are not in it, and a checkpoint has them all.",
            advice="Complete it with `coterie extract`, or prune a complete store (`coterie prune`) and export that.",
            absent=absent,
        )
    _check_one_number(origin)
    schemes = {origin.scheme(key) for key in origin.keys()} - {NATIVE}
    lossy = sorted(schemes | set(manifest.dense_schemes.lossy))
    if lossy and not dequantise:
        raise UsageError(
            f"{path} has weights in {' and '.join(lossy)}, a form that only Coterie reads.",
            advice="Export a store that is native, or dequantise them (--dequantise): what they have lost stays lost, "
            "and they take as much room as in the original.",
            schemes=lossy,
        )
    if lossy and origin.quantisation is not None:
        raise UsageError(
            f"{path} has weights in {' and '.join(lossy)}, and the rest as {origin.quantisation.method}: dequantised, "
            "they would not be what the configuration says of them.",
            advice="Prune or export a store that is native.",
            schemes=lossy,
        )
    return bool(lossy)


def _check_one_number(origin: StoreOrigin) -> None:
    """A configuration of transformers has one number of experts for all layers of a component."""
    counts: dict[str, dict[int, str]] = defaultdict(dict)
    for key, bank in origin.store.banks.items():
        counts[key.component].setdefault(bank.num_experts, str(key))
    for component, found in counts.items():
        if len(found) > 1:
            numbers = ", ".join(f"{number} in {bank}" for number, bank in sorted(found.items()))
            raise UsageError(
                f"The layers of the {component} have different numbers of experts ({numbers}), and no configuration of "
                "transformers can say so: it has one number for all layers.",
                advice="Use the store itself, or prune with the same number in every layer.",
                component=component,
                counts=sorted(found),
            )
