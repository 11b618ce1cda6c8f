from dataclasses import dataclass
from typing import Literal

import pytest

from coterie.spec.json_schema import DIALECT, json_schema


@dataclass(frozen=True)
class Leaf:
    """A leaf.

    Attributes:
        name: What it is called,
            in two lines.
        size: None if not known.
    """

    name: str
    size: float | None


@dataclass(frozen=True)
class Tree:
    """A tree of leaves,
    and more.

    More of it.
    """

    kind: Literal["oak", "elm"]
    leaves: tuple[Leaf, ...]
    by_name: dict[str, Leaf]
    evergreen: bool


def test_a_dataclass_becomes_a_schema() -> None:
    assert json_schema(Tree) == {
        "$schema": DIALECT,
        "title": "Tree",
        "type": "object",
        "description": "A tree of leaves, and more.",
        "properties": {
            "kind": {"enum": ["oak", "elm"]},
            "leaves": {"type": "array", "items": {"$ref": "#/$defs/Leaf"}},
            "by_name": {"type": "object", "additionalProperties": {"$ref": "#/$defs/Leaf"}},
            "evergreen": {"type": "boolean"},
        },
        "required": ["kind", "leaves", "by_name", "evergreen"],
        "additionalProperties": False,
        "$defs": {
            "Leaf": {
                "type": "object",
                "description": "A leaf.",
                "properties": {
                    "name": {"type": "string", "description": "What it is called, in two lines."},
                    "size": {
                        "anyOf": [{"type": "number"}, {"type": "null"}],
                        "description": "None if not known.",
                    },
                },
                "required": ["name", "size"],
                "additionalProperties": False,
            }
        },
    }


def test_what_json_cannot_say_is_refused() -> None:
    @dataclass
    class Odd:
        value: complex

    with pytest.raises(TypeError, match="complex"):
        json_schema(Odd)
