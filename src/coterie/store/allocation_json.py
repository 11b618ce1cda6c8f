"""What a manifest says about the allocation of bits, as JSON and back."""

from __future__ import annotations

import re

from coterie.store import names
from coterie.store.manifest import CRITERIA, AllocationFacts
from coterie.store.strict_json import Node

MAX_CLAIMS = 1_024
MAX_BITS = 64_000
"""In thousandths: 64 bits are those of the largest number that a checkpoint has."""

_FINGERPRINT = re.compile(r"[0-9a-f]{16,128}")
_RULE = "R36"


def allocation_value(facts: AllocationFacts) -> dict[str, object]:
    """The JSON value."""
    return {
        "criterion": facts.criterion,
        "bits": facts.bits,
        "domains": list(facts.domains),
        "tokens_of": {component: list(claims) for component, claims in facts.tokens_of.items()},
        "profile": facts.profile,
        "left_out": facts.left_out,
    }


def parse_allocation(node: Node) -> AllocationFacts:
    """Reads it as a stranger's.

    Raises:
        StoreFormatError: If it breaks a rule.
    """
    value = node.fields("criterion", "bits", "domains", "tokens_of", "profile", "left_out")
    criterion = value["criterion"].text(limit=256, rule=_RULE)
    if criterion not in CRITERIA:
        raise value["criterion"].error(_RULE, f"{criterion!r} is not one of {', '.join(CRITERIA)}")
    domains = _texts(value["domains"])
    if list(domains) != sorted(set(domains)):
        raise value["domains"].error(_RULE, "domains are distinct and ascending")
    if bool(domains) != (criterion == "energy"):
        raise value["domains"].error(_RULE, "domains are named where the criterion is 'energy', and only there")
    left_out = value["left_out"].integer(0, rule=_RULE)
    if left_out and not domains:
        raise value["left_out"].error(_RULE, "no expert is left out where no domains are named")
    tokens_of = {}
    for component, claims in value["tokens_of"].members(limit=MAX_CLAIMS):
        Node(component, node.path, value["tokens_of"], component).text(names.NAME, rule=_RULE)
        tokens_of[component] = _texts(claims)
        if not tokens_of[component]:
            raise claims.error(_RULE, "no tokens decided")
    return AllocationFacts(
        criterion=criterion,
        bits=value["bits"].integer(1, MAX_BITS, rule=_RULE),
        domains=domains,
        tokens_of=tokens_of,
        profile=value["profile"].text(_FINGERPRINT, rule=_RULE),
        left_out=left_out,
    )


def _texts(node: Node) -> tuple[str, ...]:
    return tuple(item.text(limit=256, rule=_RULE) for item in node.items(limit=MAX_CLAIMS))
