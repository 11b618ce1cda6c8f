"""Which experts are worth having: those that a profile says are used most."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from coterie.errors import UsageError
from coterie.origins import Origin
from coterie.spec import BankKey, ExpertKey

if TYPE_CHECKING:
    from coterie.profiles import ExpectedUse


def most_used(
    origin: Origin,
    top: str,
    profile: str | Path,
    *,
    domain: str | None = None,
    modalities: Collection[str] | None = None,
) -> dict[BankKey, tuple[int, ...]]:
    """The experts of a checkpoint that are used most, ascending, by bank.

    The order is that of expected use per byte, over all layers: where a few experts do most of the work, few are taken.
    But every bank gets the k that are used most in it, so that a token always finds as many.

    Args:
        origin: The model.
        top: How many, as a share of all its experts, such as ``"25%"``.
        profile: The model's profile.
        domain: Use by tokens of this domain; None for all.
        modalities: Use by tokens of these; None for all.

    Raises:
        ProfileError: If the profile cannot be used, or is another model's.
        UsageError: If it knows no such domain or modality or not all of the banks, or ``top`` is not a share.
    """
    # Imported where it is needed: a model that is opened without a profile shall not pay for a database.
    from coterie.profiles import Usage

    share = _share(top)
    expected = Usage.open(profile, origin.identity).expected(domain=domain, modalities=modalities)
    return take_most_used(
        expected,
        {key: origin.layout(key).nbytes for key in origin.keys()},
        {key: bank.bank.top_k or 1 for key, bank in origin.model.banks.items()},
        share,
    )


def take_most_used(
    expected: ExpectedUse, nbytes: Mapping[ExpertKey, int], top_k: Mapping[BankKey, int], share: float
) -> dict[BankKey, tuple[int, ...]]:
    """As :func:`most_used`.

    Args:
        expected: What a profile says.
        nbytes: Expert → bytes of its record, for all that there are.
        top_k: Bank → experts of it that there must be at least, or all if it has fewer.
        share: Of all experts.

    Raises:
        UsageError: If nothing is known of a bank.
    """
    unknown = top_k.keys() - expected.rates.keys()
    if unknown:
        raise UsageError(
            f"Nothing was recorded of {min(unknown)}, and {len(unknown)} of {len(top_k)} banks in all.",
            advice="Record a profile of the whole model, or name the component that it is about (--component).",
            got=str(min(unknown)),
        )
    order = expected.order(nbytes)
    chosen: dict[BankKey, set[int]] = {key: set() for key in top_k}
    for key in order[: math.ceil(share * len(order))]:
        chosen[key.bank_key].add(key.expert)
    for key in order:
        ids = chosen[key.bank_key]
        if len(ids) < top_k[key.bank_key]:
            ids.add(key.expert)
    return {key: tuple(sorted(ids)) for key, ids in chosen.items()}


def _share(text: str) -> float:
    try:
        share = float(text.strip().removesuffix("%")) / 100 if text.strip().endswith("%") else math.nan
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise UsageError(f"{text!r} is not a share of the experts.", advice="Write it like 25%.", got=text)
    return share
