from pathlib import Path

import pytest

from coterie.errors import UsageError
from coterie.fitting.held_out import divide
from coterie.survey import gather

from .conftest import text


def documents(path: Path) -> list[str]:
    return [one for one in path.read_text().strip().split("\n\n") if one.strip()]


def test_no_document_decides_and_is_scored(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    one = text(tmp_path / "code", "code", documents=40)
    # The same documents in a second file, in another order.
    (tmp_path / "code/again.txt").write_text("\n\n".join(documents(one)[::-1]))
    material = [*gather("text", "code", tmp_path / "code"), *gather("text", "prose", text(tmp_path, "prose"))]
    found = divide(material, [], tmp_path / "w", tokens=100_000)
    assert found.held_out
    assert found.lacking == ()
    for domain, count in (("code", 40), ("prose", 20)):
        (decides,) = (documents(one.path) for one in found.decides if one.domain == domain)
        scored = documents(found.scored[domain])
        assert not set(decides) & set(scored)
        assert (len({*decides, *scored}), len(decides) + len(scored)) == (count, count)
        assert 0.1 < len(scored) / count < 0.5
    again = divide(material[::-1], [], tmp_path / "other", tokens=100_000)
    assert {domain: path.read_text() for domain, path in again.scored.items()} == {
        domain: path.read_text() for domain, path in found.scored.items()
    }


def test_something_of_each_domain_is_scored_that_has_two_documents(tmp_path: Path) -> None:
    files = [text(tmp_path, name, documents=count) for name, count in (("code", 2), ("prose", 1))]
    material = [one for path in files for one in gather("text", path.stem, path)]
    found = divide(material, [], tmp_path / "w", tokens=1000)
    assert (list(found.scored), found.lacking) == (["code"], ("prose",))
    assert [len(documents(one.path)) for one in found.decides] == [1, 1]
    with pytest.raises(UsageError, match="each domain is one document"):
        divide(material[1:], [], tmp_path / "w", tokens=1000)


def test_texts_of_their_own_are_scored_and_nothing_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "apart").mkdir()
    material = gather("text", "code", text(tmp_path, "code"))
    apart = gather("text", "prose", text(tmp_path / "apart", "prose"))
    found = divide(material, apart, tmp_path / "w", tokens=100_000)
    assert (found.held_out, list(found.scored)) == (False, ["prose"])
    assert len(documents(found.decides[0].path)) == 20
    assert documents(found.scored["prose"]) == documents(apart[0].path)


def test_far_too_much_text_is_cut_evenly_from_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for number in range(4):
        draw = text(tmp_path, f"code{number}", documents=200)
        draw.rename(tmp_path / "many" / draw.name)
    found = divide(gather("text", "code", tmp_path / "many"), [], tmp_path / "w", tokens=500)
    kept = documents(found.decides[0].path)
    assert 4_000 < sum(map(len, kept)) < 6_000
    origins = [set(documents(path)) for path in sorted((tmp_path / "many").iterdir())]
    counts = [len(set(kept) & origin) for origin in origins]
    assert min(counts) > 0
    assert max(counts) <= 2 * min(counts) + 2
