"""In which schemes linear layers outside experts are: as a user asks for them, and as a store has them. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from coterie.errors import UsageError
from coterie.spec.dense_parts import DENSE_PARTS, SCHEMED_PARTS
from coterie.spec.encodings import NATIVE
from coterie.spec.scheme_names import check_scheme

REST = "rest"
"""Stands for the parts that are not named."""

_FORM = "Write one scheme for all, such as int8, or schemes by part, such as attention=int8,encoders=native,rest=int4."


@dataclass(frozen=True, slots=True)
class DenseSchemes:
    """The scheme of the linear layers of each part of a model.

    There is one form for each choice: where one scheme for all parts says the same, ``by_part`` is empty.

    Attributes:
        scheme: That of all parts that one scheme for all is meant for; others are native. Means nothing if there is
            ``by_part``.
        by_part: Pairs of part and scheme, in the order of the table, for every part that the model has.
    """

    scheme: str = NATIVE
    by_part: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of_parts(cls, schemes: Mapping[str, str]) -> DenseSchemes:
        """Those of a model with these parts.

        Args:
            schemes: Part → scheme, for every part of the model whose linear layers may be in one.
        """
        in_rest = {scheme for part, scheme in schemes.items() if DENSE_PARTS[part].in_rest}
        others = {scheme for part, scheme in schemes.items() if not DENSE_PARTS[part].in_rest}
        if len(in_rest) <= 1 and others <= {NATIVE}:
            return cls(scheme=next(iter(in_rest), NATIVE))
        return cls(by_part=tuple((part, schemes[part]) for part in SCHEMED_PARTS if part in schemes))

    def of(self, part: str) -> str:
        """The scheme of a part's linear layers; native for one that the model does not have."""
        if self.by_part:
            return dict(self.by_part).get(part, NATIVE)
        return self.scheme if DENSE_PARTS[part].kept is None and DENSE_PARTS[part].in_rest else NATIVE

    @property
    def lossy(self) -> tuple[str, ...]:
        """The schemes other than native that occur, by name."""
        found = {scheme for _, scheme in self.by_part} if self.by_part else {self.scheme}
        return tuple(sorted(found - {NATIVE}))

    def __str__(self) -> str:
        """As a user would write it."""
        return ",".join(f"{part}={scheme}" for part, scheme in self.by_part) or self.scheme


NATIVE_EVERYWHERE = DenseSchemes()
"""As in the checkpoint."""

SPEAKING = DenseSchemes.of_parts({name: DENSE_PARTS[name].speaking for name in SCHEMED_PARTS})
"""What a model that speaks gets beside experts in a lossy scheme, if nobody says otherwise."""


@dataclass(frozen=True, slots=True)
class DenseRequest:
    """What a user asks for.

    Attributes:
        named: Part → scheme.
        rest: The scheme of the other parts; None leaves them as they would be.
    """

    named: Mapping[str, str]
    rest: str | None = None

    @classmethod
    def parse(cls, given: str | Mapping[str, str] | None) -> DenseRequest:
        """Reads what was given: one scheme, or schemes by part as a text or a mapping; None asks for nothing.

        Raises:
            UsageError: If a part or a scheme is not known, occurs twice, or the part always keeps the checkpoint's
                bits.
        """
        if given is None:
            return cls({})
        if isinstance(given, str) and "=" not in given:
            return cls({}, _known(given.strip()))
        named: dict[str, str] = {}
        for part, scheme in _clauses(given):
            if part in named:
                raise UsageError(f"{part!r} is given two schemes.", advice=_FORM, got=part)
            named[part] = _known(scheme)
            _check_part(part, scheme)
        rest = named.pop(REST, None)
        return cls({part: scheme for part, scheme in named.items() if part in SCHEMED_PARTS}, rest)

    @property
    def only_native(self) -> bool:
        """Whether no scheme that loses something is asked for."""
        return {*self.named.values(), self.rest} <= {None, NATIVE}

    @property
    def cautions(self) -> tuple[str, ...]:
        """What is known against something that is asked for by name."""
        return tuple(
            f"{part}={scheme}: {DENSE_PARTS[part].cautions[scheme]}."
            for part, scheme in self.named.items()
            if scheme in DENSE_PARTS[part].cautions
        )

    def settle(self, parts: Collection[str], otherwise: DenseSchemes, model: str) -> DenseSchemes:
        """The schemes of a model's parts.

        Args:
            parts: Those that the model has, of the ones whose linear layers may be in a scheme.
            otherwise: The schemes of parts about which nothing is asked.
            model: Its class, for messages.

        Raises:
            UsageError: If a part is named that the model does not have.
        """
        for part in self.named:
            if part not in parts:
                here = [name for name in SCHEMED_PARTS if name in parts]
                raise UsageError(
                    f"{model} has no part {part!r} with linear layers.",
                    advice=f"It has: {', '.join(map(repr, here))}.",
                    got=part,
                    valid=here,
                )
        if not parts:
            return DenseSchemes(self.rest or otherwise.scheme)
        return DenseSchemes.of_parts({part: self._scheme(part, otherwise) for part in parts})

    def _scheme(self, part: str, otherwise: DenseSchemes) -> str:
        if part in self.named:
            return self.named[part]
        if self.rest is not None and DENSE_PARTS[part].in_rest:
            return self.rest
        return otherwise.of(part)


def _clauses(given: str | Mapping[str, str]) -> Iterable[tuple[str, str]]:
    if isinstance(given, Mapping) and all(isinstance(one, str) for pair in given.items() for one in pair):
        return given.items()
    if not isinstance(given, str):
        raise UsageError(f"{given!r} says no scheme of any part.", advice=_FORM, got=given)
    pairs = []
    for clause in given.split(","):
        part, equals, scheme = (piece.strip() for piece in clause.partition("="))
        if not equals:
            raise UsageError(f"{clause.strip()!r} in {given!r} names no part.", advice=_FORM, got=given)
        pairs.append((part, scheme))
    return pairs


def _known(scheme: str) -> str:
    check_scheme(scheme)
    return scheme


def _check_part(part: str, scheme: str) -> None:
    if part == REST:
        return
    if part not in DENSE_PARTS:
        raise UsageError.unknown("part", part, (*SCHEMED_PARTS, REST))
    kept = DENSE_PARTS[part].kept
    if kept is not None and scheme != NATIVE:
        raise UsageError(
            f"{part!r} cannot be stored as {scheme}: {kept}.",
            advice=f"Parts that can: {', '.join(SCHEMED_PARTS)}.",
            got=part,
            valid=list(SCHEMED_PARTS),
        )
