"""The packings that a configuration states, and which of them a weight has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from coterie.spec.packing import Packing, PackingKind, Shape

_MANY = 4096
"""More settings of single modules than any configuration has."""


class Refused(Exception):
    """Why a quantisation is not read, as the end of a sentence that begins with its configuration's path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packings:
    """The packings of a checkpoint.

    Attributes:
        kind: Whose format it is.
        candidates: Those that weights have, the usual one first.
        of_modules: Those of modules that are named, which have no other.
    """

    kind: PackingKind
    candidates: tuple[Packing, ...]
    of_modules: Mapping[str, Packing] = field(default_factory=dict)

    def of(self, module: str, shapes: Mapping[str, Shape]) -> Packing | None:
        """The packing of a weight; None if its tensors are of none.

        Which modules have which packing is told by the shapes of their tensors, so that no pattern of a configuration
        is ever run.

        Args:
            module: The module's name in the checkpoint.
            shapes: The shapes of its tensors by role.
        """
        named = self.of_modules.get(module)
        candidates = self.candidates if named is None else (named,)
        return next((packing for packing in candidates if packing.fits(shapes)), None)


def whole_number(found: Mapping[str, object], key: str, lowest: int, highest: int) -> int:
    """A number of a configuration.

    Raises:
        Refused: If it is not there, or out of these bounds.
    """
    value = found.get(key)
    if type(value) is not int or not lowest <= value <= highest:
        raise Refused(f"states {key} {ascii(value)[:40]}, not a whole number from {lowest} to {highest}")
    return value


def group_of(found: Mapping[str, object], key: str = "group_size") -> int | None:
    """The inputs that share a scale; None, which is written as -1, for all of a row."""
    value = whole_number(found, key, -1, 2**20)
    if value == 0:
        raise Refused(f"states {key} 0")
    return None if value < 0 else value


def settings(found: object, key: str) -> Mapping[str, Mapping[str, object]]:
    """Settings of single modules under a key, by name or pattern; those that are no settings are left out.

    Raises:
        Refused: If they are too many.
    """
    value = found.get(key) if isinstance(found, dict) else None
    if not isinstance(value, dict):
        return {}
    if len(value) > _MANY:
        raise Refused(f"has {len(value)} entries in {key}")
    return {name: one for name, one in value.items() if isinstance(one, dict)}


def distinct(packings: list[Packing]) -> tuple[Packing, ...]:
    """Without repetition, in order."""
    return tuple(dict.fromkeys(packings))
