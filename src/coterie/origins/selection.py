"""Which experts of its source a pruned model has: the file that says so, in a store and in a checkpoint made of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.errors import StoreFormatError
from coterie.files.json_text import read_json_object
from coterie.spec import BankKey

SELECTION_FILE = "coterie-selection.json"
SELECTION_SCHEMA_VERSION = 1

_DAMAGED = "Leave it as it was written, or prune the original model again."


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptExperts:
    """What is left of one bank.

    Attributes:
        before: Experts that the bank had in the model that was pruned first.
        experts: Their numbers there, by their numbers here.
    """

    before: int
    experts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which experts are left, and why.

    Attributes:
        source: Name of the checkpoint that was pruned.
        revision: Commit of its Hub repository, or None.
        identity: Fingerprint of that model.
        steps: What experts were chosen by, one entry for each time that it was pruned.
        banks: Bank → what is left of it.
    """

    source: str
    revision: str | None
    identity: str
    steps: tuple[Mapping[str, Any], ...]
    banks: Mapping[BankKey, KeptExperts]

    def then(self, kept: Mapping[BankKey, tuple[int, ...]], step: Mapping[str, Any]) -> Selection:
        """The selection of the model that this one becomes when it is pruned once more.

        Args:
            kept: Bank → numbers here of the experts that stay.
            step: What they were chosen by.
        """
        banks = {
            key: KeptExperts(before=bank.before, experts=tuple(bank.experts[e] for e in kept[key]))
            for key, bank in self.banks.items()
        }
        return Selection(
            source=self.source, revision=self.revision, identity=self.identity, steps=(*self.steps, step), banks=banks
        )

    def to_bytes(self) -> bytes:
        """The content of the file: the same for the same selection."""
        banks = [
            {**key._asdict(), "experts_before": bank.before, "experts": list(bank.experts)}
            for key, bank in sorted(self.banks.items())
        ]
        # A line for each bank: thousands of numbers, one on each line, are nothing to read.
        lines = ",\n".join(f"    {json.dumps(bank)}" for bank in banks)
        head = {
            "schema_version": SELECTION_SCHEMA_VERSION,
            "source": {"name": self.source, "revision": self.revision, "identity": self.identity},
            "steps": [dict(step) for step in self.steps],
        }
        text = json.dumps(head, indent=2).removesuffix("\n}")
        return f'{text},\n  "banks": [\n{lines}\n  ]\n}}\n'.encode()

    @classmethod
    def read(cls, directory: Path) -> Selection | None:
        """Reads that of a model; None if it has none, because it was never pruned.

        Raises:
            StoreFormatError: If the file is not one.
        """
        path = directory / SELECTION_FILE
        try:
            raw = read_json_object(path, error=StoreFormatError, advice=_DAMAGED)
        except FileNotFoundError:
            return None
        try:
            if raw["schema_version"] != SELECTION_SCHEMA_VERSION:
                raise StoreFormatError(
                    f"{path} has the schema version {ascii(raw['schema_version'])[:20]}; {SELECTION_SCHEMA_VERSION} is "
                    "known.",
                    advice="Use the version of Coterie that wrote it, or a newer one.",
                    path=path,
                )
            source = raw["source"]
            selection = cls(
                source=_text(source["name"]),
                revision=None if source["revision"] is None else _text(source["revision"]),
                identity=_text(source["identity"]),
                steps=tuple(dict(step) for step in raw["steps"]),
                banks={_bank(bank): _kept(bank) for bank in raw["banks"]},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreFormatError(
                f"{path} is not complete and consistent: {error}.", advice=_DAMAGED, path=path
            ) from error
        if len(selection.banks) != len(raw["banks"]):
            raise StoreFormatError(f"{path} names a bank twice.", advice=_DAMAGED, path=path)
        return selection


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{ascii(value)[:40]} is not a text")
    return value


def _bank(raw: Mapping[str, Any]) -> BankKey:
    return BankKey(_text(raw["component"]), _number(raw["layer"]), _text(raw["bank"]))


def _kept(raw: Mapping[str, Any]) -> KeptExperts:
    before, experts = _number(raw["experts_before"]), tuple(map(_number, raw["experts"]))
    if not experts or len(set(experts)) != len(experts) or max(experts) >= before:
        raise ValueError(f"the experts of {_bank(raw)} are not different numbers below {before}")
    return KeptExperts(before=before, experts=experts)


def _number(value: object) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{ascii(value)[:40]} is not a number of an expert or a layer")
    return value
