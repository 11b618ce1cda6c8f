from pathlib import Path

import numpy as np
import pytest

from coterie.errors import InputError, UsageError
from coterie.evaluate import Reads, TokenScores
from coterie.evaluate.journal import Continued, Finished, Journal

HEADER = {"model": "00ff", "context": 8, "texts": ["ab"]}

READS = Reads(
    tokens=2, requested=9, hits=5, bytes_read=100, left_out=3, bytes_not_read=75, capacity=200, total_expert_bytes=400
)


def scores(seed: int) -> TokenScores:
    rng = np.random.default_rng(seed)
    return TokenScores(
        loss=rng.random(5) / 3,
        correct=rng.random(5) < 0.5,
        full_loss=np.array([np.inf, *rng.random(4)]),
        full_correct=rng.random(5) < 0.5,
        kld=rng.random(5) * 1e-9,
        same_top=rng.random(5) < 0.5,
        identical=rng.random(5) < 0.5,
    )


def assert_same(one: TokenScores, other: TokenScores) -> None:
    for name in TokenScores.__slots__:
        ours, theirs = getattr(one, name), getattr(other, name)
        if ours is None:
            assert theirs is None
        else:
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)


def test_what_was_written_is_read_back_to_the_last_bit(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    alone = TokenScores(loss=np.array([0.1, 1 / 3]), correct=np.array([True, False]))
    with Journal(path, HEADER) as journal:
        journal.append((0, 0), Finished(scores(1)))
        journal.append((1, 3), Finished(alone, READS, READS))
        journal.append("ab", Continued((5, 0), (5, 6)))
        journal.append("cd", Continued(()))
    with Journal(path, HEADER) as journal:
        assert list(journal.done) == [(0, 0), (1, 3), "ab", "cd"]
        assert (journal.done["ab"], journal.done["cd"]) == (Continued((5, 0), (5, 6)), Continued((), None))
        assert_same(journal.done[0, 0].scores, scores(1))
        assert_same(journal.done[1, 3].scores, alone)
        assert (journal.done[0, 0].reads, journal.done[1, 3].reads, journal.done[1, 3].full_reads) == (
            None,
            READS,
            READS,
        )


def test_half_a_line_is_dropped_and_the_rest_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    with Journal(path, HEADER) as journal:
        journal.append((0, 0), Finished(scores(1)))
        journal.append((0, 1), Finished(scores(2)))
    content = path.read_bytes()
    first_line = content.index(b"\n") + 1
    for cut in (1, first_line - 1, first_line, first_line + 9, len(content) - 1):
        path.write_bytes(content[:cut])
        with Journal(path, HEADER) as journal:
            assert len(journal.done) == content[:cut].count(b"\n") - (cut >= first_line)
            for window in range(len(journal.done), 2):
                journal.append((0, window), Finished(scores(window + 1)))
        assert path.read_bytes() == content


def test_another_evaluation_is_refused_and_its_file_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    with Journal(path, HEADER) as journal:
        journal.append((0, 0), Finished(scores(1)))
    content = path.read_bytes()
    with pytest.raises(UsageError, match="another evaluation: context, model differ"):
        Journal(path, HEADER | {"context": 9, "model": "11"})
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "content", [b"a diary\n", b"a diary", b"[1]\n", b'{"schema_version": 1}\n{"text": 0}\n', b'{}\n{"prompt": "a"}\n']
)
def test_a_file_of_something_else_is_refused_and_left_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "diary"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="no record of an evaluation"):
        Journal(path, HEADER)
    assert path.read_bytes() == content


def test_where_nothing_can_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        Journal(tmp_path / "nowhere" / "scores.jsonl", HEADER)
