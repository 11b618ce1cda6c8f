"""Bits by trust: the experts that a profile says add most keep more of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from coterie.errors import UsageError
from coterie.quant import lossy_scheme
from coterie.spec import BankKey, ExpertKey

_FORM = "Write it like trust:top25%=native,rest=int4, or with more steps: trust:top10%=native,top50%=int8,rest=int4."


@dataclass(frozen=True, slots=True)
class SchemesByTrust:
    """A scheme for each expert by its place among the experts of its layer, the most trusted first.

    Attributes:
        steps: (share of the layer's experts, scheme): shares ascend to 1, and a scheme is that of the experts up to its
            share which an earlier step has not taken.
    """

    steps: tuple[tuple[float, str], ...]

    @classmethod
    def parse(cls, text: str) -> SchemesByTrust | None:
        """Reads ``trust:top25%=native,rest=int4``; None for a text that has no colon, which names one scheme.

        Raises:
            UsageError: If it is of neither form, or names a scheme that there is not.
        """
        measure, colon, rest = text.partition(":")
        if not colon:
            return None
        if measure.strip() != "trust":
            raise UsageError.unknown("measure that schemes go by", measure.strip(), ["trust"])
        steps = [_step(clause, text) for clause in rest.split(",")]
        shares = [share for share, _ in steps]
        if shares[-1] != 1 or any(a >= b for a, b in itertools.pairwise(shares)):
            raise UsageError(f"The shares in {text!r} do not ascend to 'rest'.", advice=_FORM, got=text)
        return cls(tuple(steps))

    def schemes(
        self,
        keys: Iterable[ExpertKey],
        profile: str | Path,
        identity: str,
        *,
        domain: str | None = None,
        modalities: Collection[str] | None = None,
    ) -> dict[ExpertKey, str]:
        """The scheme of each of these experts.

        Args:
            keys: The experts.
            profile: The model's profile.
            identity: The model's fingerprint.
            domain: Trust by tokens of this domain; None for all.
            modalities: Trust by tokens of these; None for all.

        Raises:
            ProfileError: If the profile cannot be used, or is another model's.
            UsageError: If it knows no such domain or modality, or not all of the banks.
        """
        # Imported where it is needed: a model that is opened without a profile shall not pay for a database.
        from coterie.profiles import Usage, trust

        usage = Usage.open(profile, identity)
        rows = usage.where(domain, modalities)
        scores: dict[BankKey, list[float]] = {}
        for bank, table in usage.banks.items():
            selected = {name: getattr(table, name)[rows] for name in table.__dataclass_fields__ if name != "shape"}
            scores[bank] = trust(replace(table, **selected)).scores.tolist()
        return self.assign(keys, scores)

    def assign(self, keys: Iterable[ExpertKey], scores: Mapping[BankKey, list[float]]) -> dict[ExpertKey, str]:
        """As :meth:`schemes`, by the trust in each expert of each bank. Of equals the lower id goes first."""
        wanted = tuple(keys)
        unknown = {key.bank_key for key in wanted} - scores.keys()
        if unknown:
            raise UsageError(
                f"Nothing was recorded of {min(unknown)}, so nothing is known of the trust in its experts.",
                advice="Record a profile of the whole model, or name the component that it is about (--component).",
                got=str(min(unknown)),
            )
        by_bank = {bank: self._by_expert(scores[bank]) for bank in {key.bank_key for key in wanted}}
        return {key: by_bank[key.bank_key][key.expert] for key in wanted}

    def _by_expert(self, scores: list[float]) -> dict[int, str]:
        order = sorted(range(len(scores)), key=lambda expert: (-scores[expert], expert))
        schemes, taken = {}, 0
        for share, scheme in self.steps:
            end = math.ceil(share * len(order))
            schemes.update(dict.fromkeys(order[taken:end], scheme))
            taken = end
        return schemes


def _step(clause: str, text: str) -> tuple[float, str]:
    share, equals, scheme = (part.strip() for part in clause.partition("="))
    if not equals:
        raise UsageError(f"{clause.strip()!r} in {text!r} names no scheme.", advice=_FORM, got=text)
    lossy_scheme(scheme)
    if share == "rest":
        return 1.0, scheme
    number = share.removeprefix("top").removesuffix("%")
    try:
        percent = float(number) if share.startswith("top") and share.endswith("%") else math.nan
    except ValueError:
        percent = math.nan
    if not 0 < percent < 100:
        raise UsageError(f"{share!r} in {text!r} is not a share of the experts.", advice=_FORM, got=text)
    return percent / 100, scheme
