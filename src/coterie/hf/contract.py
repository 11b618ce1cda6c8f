"""What Coterie relies on inside transformers and is promised by nobody, each with a check of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from coterie.errors import ContractError


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """One thing that a release of transformers may change.

    Attributes:
        name: What is relied on.
        protects: What would go wrong without it.
        follower: The module of ``coterie`` that has to follow a change.
        check: Raises whatever it likes if the installed release does otherwise.
        essential: Whether memory or exactness rests on it: then no model is opened without it.
    """

    name: str
    protects: str
    follower: str
    check: Callable[[], None]
    essential: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of one check.

    Attributes:
        name: The contract's.
        protects: Likewise.
        follower: Likewise.
        essential: Likewise.
        ok: Whether it is kept.
        problem: What the installed release does instead, or None.
    """

    name: str
    protects: str
    follower: str
    essential: bool
    ok: bool
    problem: str | None


class Broken(Exception):
    """What a check found, as a sentence."""


def expect(kept: bool, otherwise: str) -> None:
    """Ends a check unless the contract is kept.

    Args:
        kept: Whether it is.
        otherwise: What the release does instead, as a sentence.
    """
    if not kept:
        raise Broken(otherwise)


def examine(contracts: Iterable[Contract]) -> tuple[Verdict, ...]:
    """Runs the checks, all of them, whatever they raise."""
    return tuple(_verdict(contract) for contract in contracts)


def _verdict(contract: Contract) -> Verdict:
    problem = None
    try:
        contract.check()
    except (Broken, ContractError) as error:
        problem = str(error)
    except Exception as error:  # a release may break in any way
        problem = f"{type(error).__name__}: {error}"
    return Verdict(
        name=contract.name,
        protects=contract.protects,
        follower=contract.follower,
        essential=contract.essential,
        ok=problem is None,
        problem=problem,
    )
