"""The tokens that have a say in what becomes of experts, each kind of them an equal one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from coterie.errors import UsageError
from coterie.profiles.facts import MODALITIES
from coterie.profiles.usage import BankUsage, Usage
from coterie.spec import BankKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Tokens that have an equal say.

    Attributes:
        modality: Theirs.
        domain: Theirs; None for all domains.
    """

    modality: str
    domain: str | None

    def __str__(self) -> str:
        return self.modality if self.domain is None else f"{self.modality} of {self.domain}"


def claims_of(
    usage: Usage,
    banks: Collection[BankKey],
    required: Mapping[str, Collection[str]],
    *,
    domains: Sequence[str] = (),
    modalities: Sequence[str] = (),
    at_stake: str,
) -> Iterator[tuple[BankKey, dict[Claim, list[int]]]]:
    """The claims on each bank: one for each modality, or, if domains are named, for each modality of each domain.

    Args:
        usage: The profile's counters.
        banks: The banks.
        required: Component → modalities that its banks serve.
        domains: Only tokens of these; all by default.
        modalities: Only tokens of these; all that the component serves by default.
        at_stake: What would become of experts that a modality needs which was not recorded: a sentence.

    Yields:
        Bank by bank in ascending order: claim → rows of the groups of tokens that make it.

    Raises:
        UsageError: If a name is not known, or nothing, or nothing of a required modality, was recorded of a bank.
    """
    for domain in domains:
        if domain not in usage.domains:
            raise UsageError.unknown("domain", domain, usage.domains)
    for modality in modalities:
        if modality not in MODALITIES:
            raise UsageError.unknown("modality", modality, MODALITIES)
        if modality not in usage.modalities:
            raise UsageError.unknown("modality of this profile", modality, usage.modalities)
    for bank in sorted(banks):
        table = usage.banks.get(bank)
        if table is None:
            raise UsageError(
                f"Nothing was recorded of {bank}.",
                advice="Record a profile of the whole model: coterie profile record.",
                got=str(bank),
            )
        found = _claims(usage, table, domains, modalities)
        if not modalities:
            lacking = sorted(set(required.get(bank.component, ())) - {claim.modality for claim in found})
            if lacking:
                raise _lacks(bank, lacking, found, domains, at_stake)
        if not found:
            raise UsageError(
                f"Nothing was recorded of {bank} for {' and '.join([*modalities, *domains])}.",
                advice=f"Recorded of it: {', '.join(sorted(set(_recorded(usage, table))))}.",
                got=str(bank),
            )
        yield bank, found


def check_outputs(table: BankUsage, rows: list[int], what: str, *, needs: str, instead: str = "") -> None:
    """Refuses a profile that has no sizes of experts' outputs.

    Args:
        table: Counters of a bank.
        rows: Those that matter.
        what: Name of these.
        needs: What needs them.
        instead: What else could be done.

    Raises:
        UsageError: If nothing was measured.
    """
    if not table.reap_counts[rows].any():
        raise UsageError(
            f"The profile has no sizes of experts' outputs for {what}, and {needs} needs them.",
            advice=f"Record the profile again with --contributions{instead}.",
            got=what,
        )


def _claims(
    usage: Usage, table: BankUsage, domains: Sequence[str], modalities: Sequence[str]
) -> dict[Claim, list[int]]:
    """Claim → rows of the groups of tokens that make it."""
    found: dict[Claim, list[int]] = {}
    for row, group in enumerate(usage.groups):
        wanted = (not domains or group.domain in domains) and (not modalities or group.modality in modalities)
        if wanted and table.activations[row].any():
            claim = Claim(modality=group.modality, domain=group.domain if domains else None)
            found.setdefault(claim, []).append(row)
    return found


def _recorded(usage: Usage, table: BankUsage) -> list[str]:
    return [f"{group.modality} of {group.domain}" for group, n in zip(usage.groups, table.tokens, strict=True) if n]


def _lacks(
    bank: BankKey, lacking: Sequence[str], found: Collection[Claim], domains: Sequence[str], at_stake: str
) -> UsageError:
    where = f"of {' and '.join(domains)} " if domains else ""
    kept = min((claim.modality for claim in found), default="text")
    return UsageError(
        f"The model takes or makes {' and '.join(lacking)}, and the profile has recorded nothing of that {where}in "
        f"{bank}. {at_stake}",
        advice=f"Record {' and '.join(lacking)} into the profile, too, or name the modalities that are to be kept, "
        f"such as --modality {kept}, and the others may be lost.",
        lacking=lacking,
        bank=str(bank),
    )
