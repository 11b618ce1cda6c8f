"""What is looked at before a model is opened with a release of transformers that the tests do not run with."""

from __future__ import annotations

import functools

from coterie.engine.quiet import quiet_libraries
from coterie.errors import ContractError
from coterie.hf.contract import examine
from coterie.hf.contracts import CONTRACTS as READING
from coterie.hf.releases import TESTED, installed, warn_if_newer
from coterie.integration.contracts import CONTRACTS as RUNNING

ESSENTIAL = tuple(contract for contract in (*READING, *RUNNING) if contract.essential)
"""What memory and exactness rest on."""


def check_release() -> None:
    """Warns of a release that is newer than any tested, and holds one that was not tested against what is relied on.

    Once in a process.

    Raises:
        ContractError: If memory or exactness rests on something that this release does otherwise.
    """
    release = installed()
    warn_if_newer()
    if release not in TESTED:
        _check_essentials(release)


@functools.cache
def _check_essentials(release: str) -> None:
    with quiet_libraries():
        broken = [verdict for verdict in examine(ESSENTIAL) if not verdict.ok]
    if broken:
        first = broken[0]
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise ContractError(
            f"transformers {release} does otherwise than Coterie relies on: {first.name}{more}. {first.problem}",
            advice=f"Install transformers {TESTED[-1]}. `coterie doctor --transformers` lists all that is relied on.",
            release=release,
            contract=first.name,
        )
