"""A profile counts each request's tokens under its own domain, whoever shares its passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import coterie
from coterie.errors import UsageError
from coterie.extraction import extract
from coterie.generation.engine import Engine
from coterie.generation.opened import OpenModel
from coterie.generation.sampling import Sampling
from coterie.native import library
from coterie.profiles import Profile, ProfileDatabase

BUNDLED = Path(coterie.__file__).parent / "bundled"
WISHES = Sampling(max_new_tokens=6, greedy=True, ignore_eos=True)
PROMPTS = {"code": "def area(width, height):", "prose": "And it came to pass", None: "Once upon a time there was"}


@pytest.fixture(scope="module", params=["turns", "shared passes"])
def opened(request, tmp_path_factory) -> Iterator[OpenModel]:
    path: Path = BUNDLED
    if request.param == "shared passes":
        if library() is None:
            pytest.skip("the native library was not built")
        path = tmp_path_factory.mktemp("domains") / "store"
        extract(BUNDLED, path, scheme="int4", dense_scheme="int4")
    model = coterie.load(path, expert_memory="100%")
    yield OpenModel.of(model)
    model.coterie.close()


def counted(path: Path) -> dict[tuple[str, str], int]:
    """Of one bank, (domain, phase) → tokens that passed its router."""
    with ProfileDatabase(path) as database:
        profile = Profile.read(database)
    table = profile.banks[min(profile.banks)]
    found: Counter[tuple[str, str]] = Counter()
    for index, tokens in zip(table.groups.tolist(), table.tokens.tolist(), strict=True):
        group = profile.groups[index]
        found[group.domain, group.phase] += tokens
    return dict(found)


def test_requests_beside_each_other(opened, tmp_path) -> None:
    with (
        Engine(opened, parallel=3, prefix_memory=0) as engine,
        opened.runtime.record_profile(tmp_path / "profile.db", domain="general") as recorder,
    ):
        tickets = {name: engine.submit(text, WISHES, domain=name) for name, text in PROMPTS.items()}
        done = {name: ticket.result() for name, ticket in tickets.items()}
    expected = {}
    for name, completion in done.items():
        domain = name or "general"
        expected[domain, "prompt"] = completion.prompt_tokens
        # The last token never passes a router.
        expected[domain, "generated"] = len(completion.token_ids) - 1
    assert counted(tmp_path / "profile.db") == expected
    assert {(group.domain, group.phase): tokens for group, tokens in recorder.tokens.items()} == expected


def test_a_name_that_is_none(opened) -> None:
    with Engine(opened) as engine, pytest.raises(UsageError, match="not the name of a domain"):
        engine.submit("a", domain=" ")
