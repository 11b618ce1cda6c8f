"""Questions that a process of its own answers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from coterie.profiles.asking import _answer
from profiles.synthetic import IDENTITY


def ask(where: Path, kind: str, **options: Any) -> dict[str, Any]:
    return json.loads(json.dumps(_answer(str(where), IDENTITY, kind, **options), default=str))


def test_answers_are_those_of_the_functions(planted: Path) -> None:
    summary = ask(planted, "summary")
    assert set(summary["domains"]) == {"code", "law", "prose"}
    ranking = ask(planted, "rank", domain="prose", limit=2)
    assert [(one["layer"], one["expert_id"]) for one in ranking["experts"]] == [(1, 5), (1, 6)]
    card = ask(planted, "expert", layer=0, expert=3, component="text", bank="mlp")
    assert next(one for one in card["domains"] if one["name"] == "code")["figures"]["specialist"]


def test_what_cannot_be_answered_is_said_without_the_profile_s_place(planted: Path) -> None:
    for said in (ask(planted, "rank", domain="nothing"), ask(planted, "expert", layer=9, expert=3)):
        assert str(planted.parent) not in said["refused"]


def test_too_little_memory_ends_in_words(planted: Path) -> None:
    question = json.dumps({"where": str(planted), "identity": IDENTITY, "ask": "summary"}).encode()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "coterie.profiles.asking", str(48 << 20), "20"],
        input=question, capture_output=True, check=False, timeout=120, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert not done.stdout or json.loads(done.stdout) == {"error": "memory"}
