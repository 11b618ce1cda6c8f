"""Eight processes into one server, and into eight files that are merged later."""

import multiprocessing
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from coterie.profiles import (
    Profile,
    ProfileDatabase,
    Recording,
    RunFacts,
    expert_card,
    merge,
    rank_experts,
    share_profile,
)
from coterie.profiles import recording as recording_module
from profiles.contents import contents
from profiles.synthetic import Router, run_facts, shapes

PROCESSES = 8
ROUTER = Router(layers=3, experts=16, top_k=4, burst=1.0, planted={(1, "code"): (3, 4), (2, "law"): (9,)})
BANKS = shapes(3, 16, 4)


def record(where: str, number: int) -> None:
    """What one process records; the same whenever and wherever it does."""
    # However busy the machine is, segments end where they should: answers are compared to the last bit.
    recording_module._WAITING = 1000
    run = RunFacts(
        **{name: getattr(run_facts(BANKS), name) for name in RunFacts.__dataclass_fields__}
        | {"uuid": f"00000000-0000-4000-8000-00000000000{number}", "started": "2026-01-01T00:00:00Z"}
    )
    rng = np.random.default_rng(number)
    with ProfileDatabase(where, create=True) as database, Recording(database, run, segment_tokens=100) as recording:
        for domain in ("code", "law"):
            group = recording.group("text", domain, "prompt")
            for document in range(4):
                token_ids = rng.integers(0, 30, 60)
                for shape, (ids, weights) in zip(BANKS, ROUTER.document(rng, domain, 60), strict=True):
                    recording.add(shape.bank, ids, weights, weights * 2, group, token_ids)
                recording.mark(f"{domain} {document}", 1, done=True)


def at_once(places: list[str]) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=record, args=(where, number)) for number, where in enumerate(places)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * PROCESSES


def answers(database: ProfileDatabase) -> dict[str, object]:
    profile = Profile.read(database)
    return {
        "contents": contents(database),
        "rankings": [asdict(rank_experts(profile, domain=domain)) for domain in ("code", "law")],
        "card": asdict(expert_card(profile, database, 1, 3)),
        "shared": asdict(share_profile(profile, database)),
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What each process recorded into a file of its own; read it only."""
    folder = tmp_path_factory.mktemp("files")
    found = [str(folder / f"{number}.db") for number in range(PROCESSES)]
    at_once(found)
    return found


@pytest.mark.parametrize("server", ["one server", "one file"])
def test_processes_into_one_place_and_into_files_merged_later_give_the_same(
    tmp_path: Path, files: list[str], server, request
) -> None:
    one = request.getfixturevalue("postgresql") if server == "one server" else str(tmp_path / "one.db")
    # None of them finds any tables: they are made once all the same.
    at_once([one] * PROCESSES)
    sources = [ProfileDatabase(path) for path in files]
    with ProfileDatabase(one) as together, ProfileDatabase(tmp_path / "merged.db", create=True) as merged:
        merge(sources[::-1], merged)
        found = answers(together)
        assert found == answers(merged)
    for source in sources:
        source.close()
    assert len(found["contents"]) == PROCESSES  # type: ignore[arg-type]
    rankings = found["rankings"]
    special = [
        {(e["layer"], e["expert_id"]) for e in ranking["experts"] if e["specialist"]}
        for ranking in rankings  # type: ignore[attr-defined]
    ]
    assert special == [{(1, 3), (1, 4)}, {(2, 9)}]
