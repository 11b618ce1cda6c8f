"""What is said about opening a model is checked before anything is read."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from coterie.errors import UsageError
from coterie.spec.opening import Opening

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"missing": "maskk"}, "Did you mean 'mask'"),
    ({"prefetch": "onn"}, "Did you mean 'on'"),
    ({"source": "x"}, "source='x' says where absent experts are fetched from"),
    ({"source": "x", "missing": "mask"}, "source='x' says where absent experts are fetched from"),
    ({"memory": "lots"}, "'lots' is not a size"),
    ({"expert_memory": "200%"}, "200%"),
    ({"threads": 0}, "threads must be at least 1"),
    ({"max_context": -1}, "max_context must be at least 1"),
    ({"drop_cold": 0}, "drop_cold is a share of a token's highest gate weight, above 0 and up to 1, not 0"),
    ({"drop_cold": 1.01}, "up to 1, not 1.01"),
    ({"pin": "1GiB"}, "pin='1GiB' keeps what a profile says"),
    ({"pin": "1GiB", "profile": "p.db", "warm": None}, "What is pinned is warmed"),
    ({"max_rate": "fast"}, "rate 'fast' is not a size"),
    ({"max_rate": "20MB/s", "offline": True}, "offline says that nothing is"),
    ({"pin": "lots", "profile": "p.db"}, "lots"),
]


@pytest.mark.parametrize(("options", "said"), WRONG)
def test_what_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Opening(**options).check()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"memory": "8GiB", "expert_memory": "25%", "missing": "fetch", "source": "x", "prefetch": "off"},
        {"profile": "p.db", "pin": "25%", "warm": "code", "threads": 1, "max_context": 1},
        {"drop_cold": 1},
        {"drop_cold": 0.05},
        {"max_rate": "20MB/s"},
    ],
)
def test_what_can_be_is_not(options: dict[str, Any]) -> None:
    Opening(**options).check()


def test_it_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Opening().memory = "8GiB"  # type: ignore[misc]
