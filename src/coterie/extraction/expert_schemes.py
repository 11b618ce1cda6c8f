"""A scheme for each expert, and for each of its matrices, as a file or a mapping names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.errors import UsageError
from coterie.extraction.quantising import SchemeOf, matrix_names
from coterie.files.json_text import JsonLimits, read_json_object
from coterie.origins import Origin
from coterie.quant import lossy_scheme
from coterie.spec import ExpertKey
from coterie.spec.encodings import record_scheme

SCHEMA_VERSION = 1
"""Of the file."""

_LIMITS = JsonLimits(nbytes=256 << 20, values=8_000_000)
_FORM = (
    'It is like {"schema_version": 1, "rest": "int3", "experts": {"text/mlp-layer-000/00005": "int4", '
    '"text/mlp-layer-000/00006": {"gate_up_proj": "int2", "down_proj": "int4"}}}.'
)

Scheme = str | Mapping[str, str]
"""One for all matrices of an expert, or by the name of the parameter."""


@dataclass(frozen=True, slots=True)
class ExpertSchemes:
    """Schemes that somebody chose.

    Attributes:
        experts: By the name of the expert, as ``str(ExpertKey)`` has it.
        rest: That of the experts that are not named; None if they are to stay as they are.
    """

    experts: Mapping[str, Scheme]
    rest: Scheme | None

    @classmethod
    def read(cls, given: str | Path | Mapping[str, Any]) -> ExpertSchemes:
        """Reads a JSON file, or a mapping that is like one.

        Raises:
            UsageError: If it cannot be read, or is something else; says what.
        """
        if isinstance(given, Mapping):
            return cls._of(given, "The mapping of experts' schemes")
        path = Path(given)
        try:
            value = read_json_object(path, limits=_LIMITS, error=UsageError, advice=_FORM)
        except FileNotFoundError:
            raise UsageError(f"There is no file {path} with experts' schemes.", advice=_FORM, path=path) from None
        return cls._of(value, str(path))

    @classmethod
    def _of(cls, value: Mapping[str, Any], where: str) -> ExpertSchemes:
        unknown = sorted(value.keys() - {"schema_version", "rest", "experts"})
        if unknown:
            raise UsageError(f"{where} has a key {unknown[0]!r}, which means nothing.", advice=_FORM, got=unknown[0])
        if value.get("schema_version") != SCHEMA_VERSION:
            got = value.get("schema_version")
            raise UsageError(f"{where} has schema_version {got!r}, not {SCHEMA_VERSION}.", advice=_FORM, got=got)
        experts = value.get("experts", {})
        if not isinstance(experts, Mapping):
            raise UsageError(f"{where}: 'experts' names no experts.", advice=_FORM)
        for name, scheme in experts.items():
            _check(scheme, f"{where}: {name!r}")
        rest = value.get("rest")
        if rest is not None:
            _check(rest, f"{where}: 'rest'")
        return cls(dict(experts), rest)

    def of(self, origin: Origin, otherwise: SchemeOf) -> dict[ExpertKey, str]:
        """The scheme of the record of every expert of a model.

        Args:
            origin: The model.
            otherwise: The schemes of experts that are not named, if there is no ``rest``.

        Raises:
            UsageError: If an expert or a parameter is named that the model does not have.
        """
        keys = {str(key): key for key in origin.keys()}
        for name in self.experts:
            if name not in keys:
                raise UsageError(
                    f"A scheme is given for an expert {name!r}, which the model does not have.",
                    advice=f"Its experts are named like {next(iter(keys), '')}.",
                    got=name,
                )
        found = {}
        for name, key in keys.items():
            scheme = self.experts.get(name, self.rest)
            found[key] = otherwise(key) if scheme is None else _record(origin, key, scheme)
        return found


def chosen_schemes(given: str | Path | Mapping[str, Any] | None, scheme: str | None) -> ExpertSchemes | None:
    """What was chosen by expert; None if nothing was.

    Raises:
        UsageError: If it cannot be read, or a scheme is asked for beside it.
    """
    if given is None:
        return None
    if scheme is not None:
        raise UsageError(
            "Experts are given schemes in two ways, by --scheme and by --expert-schemes.",
            advice="Write the scheme of the other experts into the file, as 'rest', and leave out --scheme.",
            got=scheme,
        )
    return ExpertSchemes.read(given)


def _check(scheme: object, where: str) -> None:
    names = [scheme] if isinstance(scheme, str) else list(scheme.values()) if isinstance(scheme, Mapping) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{where} has no scheme, but {scheme!r}.", advice=_FORM, got=scheme)
    for name in names:
        lossy_scheme(name)


def _record(origin: Origin, key: ExpertKey, scheme: Scheme) -> str:
    if isinstance(scheme, str):
        return scheme
    names = matrix_names(origin.model.banks[key.bank_key].bank)
    for name in scheme:
        if name not in names:
            raise UsageError.unknown("parameter", name, names)
    for name in names:
        if name not in scheme:
            raise UsageError(f"Expert {key} is given no scheme for {name!r}.", advice=_FORM, key=key, parameter=name)
    return record_scheme([scheme[name] for name in names])
