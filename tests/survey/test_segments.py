"""Segments are short enough that there are some of every domain."""

from pathlib import Path

import pytest

from coterie.errors import CoterieError
from coterie.generation.opened import OpenModel
from coterie.profiles import ProfileDatabase
from coterie.survey import Material, WorkDone, gather, survey
from coterie.survey.segments import SegmentEnds


def files(kind, number: int, nbytes: int = 30_000, domain: str | None = None) -> list[Material]:
    name = domain or kind
    return [Material(kind=kind, domain=name, path=Path(f"/{name}/{n}"), nbytes=nbytes) for n in range(number)]


def segments(material: list[Material], tokens_each: int, limit: int | None = None) -> dict[str, int]:
    """Domain → how many segments its files are cut into, if each has so many tokens, in windows of at most 64."""
    ends = SegmentEnds(material, limit)
    found: dict[str, int] = {}
    held: set[str] = set()
    tokens = 0
    for one in material:
        left = tokens_each
        while left:
            window = min(left, 64)
            left -= window
            tokens += window
            held.add(one.domain)
            if ends.after(one, tokens, finished=not left):
                ends.ended()
                found.update({name: found.get(name, 0) + 1 for name in held})
                held, tokens = set(), 0
    return {name: found.get(name, 0) + (name in held) for name in found.keys() | held}


@pytest.mark.parametrize("number", [16, 31, 32, 63, 66, 70, 100, 500])
@pytest.mark.parametrize("kind", ["images", "speech"])
def test_sounds_and_pictures_make_at_least_sixteen_segments(kind: str, number: int) -> None:
    made = segments(files(kind, number), tokens_each=16)[kind]
    assert 16 <= made <= 64


@pytest.mark.parametrize("number", [1, 3, 12])
def test_of_few_each_is_a_segment(number: int) -> None:
    assert segments(files("images", number), tokens_each=16) == {"images": number}


def test_many_tokens_are_segments_of_the_usual_size() -> None:
    assert segments(files("images", 4000), tokens_each=64)["images"] == 4000 * 64 // 1024
    assert segments(files("text", 1, nbytes=4 << 20), tokens_each=1 << 20)["text"] == 1024


@pytest.mark.parametrize("nbytes", [8_000, 20_000, 60_000])
def test_short_texts_make_at_least_sixteen_segments(nbytes: int) -> None:
    assert 16 <= segments(files("text", 1, nbytes=nbytes), tokens_each=nbytes // 4)["text"] <= 64


def test_a_limit_counts() -> None:
    assert segments(files("text", 1, nbytes=4 << 20), tokens_each=2048, limit=2048)["text"] == 32


def test_a_segment_ends_with_its_domain() -> None:
    material = [*files("text", 1, 4_000_000, "a"), *files("images", 1), *files("text", 1, 4_000_000, "b")]
    assert segments(material, tokens_each=100) == {"a": 1, "images": 1, "b": 1}


def test_work_is_not_bytes() -> None:
    material = [*files("text", 1, 4_000), *files("images", 1, 1_000_000), *files("speech", 1, 256_000)]
    assert [one.work for one in material] == [1000, 256, 100]
    steps = [0, 2_000, 4_000, 504_000, 1_004_000, 1_260_000, 2_000_000]
    told = [0, 500, 1000, 1128, 1256, 1356, 1356]
    work, before = WorkDone(material), [0, *steps]
    added = [work.add(nbytes - last) for nbytes, last in zip(steps, before, strict=False)]
    assert [sum(added[: number + 1]) for number in range(len(steps))] == told
    assert [WorkDone(material).add(nbytes) for nbytes in steps] == told


def test_progress_over_many_files_looks_at_each_once() -> None:
    looked = []

    class Counted(list):
        def __getitem__(self, place):
            looked.append(place)
            return super().__getitem__(place)

    work = WorkDone(Counted(files("text", 1000, 4_000)))
    assert sum(work.add(4_000) for _ in range(1000)) == 1_000_000
    assert len(looked) <= 3000


@pytest.fixture
def opened(readable, open_model) -> OpenModel:
    return OpenModel.of(open_model(readable))


def test_a_short_text_is_told_of_and_a_shorter_one_warned_of(opened, words, tmp_path) -> None:
    material = [
        *gather("text", "code", words(700, "code.txt", seed=1)),
        *gather("text", "law", words(30, "law.txt", seed=2)),
    ]
    found = survey(opened, tmp_path / "p.db", material, context=16)
    with ProfileDatabase(tmp_path / "p.db") as database:
        made = {group.domain: count for group, count in database.group_segments(found.identity).items()}
    assert made["code"] >= 16
    assert {group.domain: count for group, count in found.too_few} == {"law": made["law"]}
    assert made["law"] < 8
    given = survey(opened, tmp_path / "q.db", material, context=16, segment_tokens=10**6)
    assert [count for _, count in given.too_few] == [1, 1]


def test_a_profile_that_got_nothing_is_not_left_behind(opened, words, tmp_path) -> None:
    bad = tmp_path / "a.png"
    bad.write_bytes(b"no picture")
    path = tmp_path / "p.db"
    with pytest.raises(CoterieError):
        survey(opened, path, gather("images", "images", bad))
    assert list(tmp_path.glob("p.db*")) == []
    # What was recorded before is kept.
    material = [*gather("text", "law", words(90)), *gather("images", "images", bad)]
    with pytest.raises(CoterieError):
        survey(opened, path, material)
    with ProfileDatabase(path) as database:
        assert database.state()[1] > 0
    with pytest.raises(CoterieError):
        survey(opened, path, gather("images", "images", bad))
    assert path.exists()
