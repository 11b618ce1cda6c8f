"""What keeps a store from being written as a checkpoint."""

from __future__ import annotations

from coterie.errors import UnsupportedError, UsageError
from coterie.origins import OriginBank, StoreOrigin
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
        UnsupportedError: If the checkpoint has what no store keeps.
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
    _check_even(origin)
    identities = next((bank.bank for bank in origin.model.banks.values() if bank.bank.identities), None)
    if identities is not None:
        raise UnsupportedError(
            f"{identities.key} has {identities.identities} experts that compute without weights, and its checkpoint "
            "has tensors for them that nothing reads and that no store keeps.",
            advice="Export is not possible for this model; the store itself can be used.",
            bank=str(identities.key),
        )
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


def _check_even(origin: StoreOrigin) -> None:
    """Refuses layers of different sizes: a configuration of transformers has one number of experts for all."""
    first: dict[str, OriginBank] = {}
    for key, bank in origin.model.banks.items():
        one = first.setdefault(key.component, bank)
        if bank.bank.num_experts != one.bank.num_experts:
            raise UsageError(
                f"{key} of {origin.directory} has {bank.bank.num_experts} experts, and {one.bank.key} has "
                f"{one.bank.num_experts}. A configuration of transformers has one number for all layers, so no "
                "standard checkpoint can say that.",
                advice="Prune the original with the same number in every layer (`coterie prune --ranking layer`), and "
                "export that. The store itself can be used.",
                bank=str(key),
                expected=one.bank.num_experts,
                got=bank.bank.num_experts,
            )
