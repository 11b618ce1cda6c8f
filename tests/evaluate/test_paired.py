"""Two models beside the same full one, over the same tokens."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from coterie.errors import InputError, UsageError
from coterie.evaluate import evaluate
from coterie.evaluate.journal import read_windows
from coterie.evaluate.paired import PairedScores
from coterie.extraction import quantize

SMALL = {"context": 16, "expert_memory": "100%", "limit": 64}


@pytest.fixture(scope="module")
def journals(readable: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list]:
    folder = tmp_path_factory.mktemp("journals")
    texts = []
    for name in ("one", "other"):
        (folder / f"{name}.txt").write_text(" ".join(f"w{3 + (7 * n + len(name)) % 60}" for n in range(80)))
        texts.append(folder / f"{name}.txt")
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for scheme in ("int4", "int2"):
            quantize(readable, folder / scheme, scheme=scheme)
            found.append(
                evaluate(folder / scheme, texts, against=readable, journal=folder / f"{scheme}.jsonl", **SMALL)
            )
    return folder / "int4.jsonl", folder / "int2.jsonl", found


def test_what_is_nearer_is_found_with_a_narrower_interval_than_either_has(journals) -> None:
    four, two, (of_four, of_two) = journals
    paired = PairedScores(four, two).compare("both", [0, 1])
    assert paired.kld == of_four.total.comparison.kld
    assert paired.other_kld == of_two.total.comparison.kld
    assert paired.tokens == of_four.total.tokens
    assert paired.difference.value == pytest.approx(paired.kld.value - paired.other_kld.value)
    assert paired.ratio.value == pytest.approx(paired.kld.value / paired.other_kld.value)
    assert paired.ratio.low < paired.ratio.value < paired.ratio.high
    assert paired.nearer is True
    assert PairedScores(two, four).compare("both", [0, 1]).nearer is False
    same = PairedScores(four, four).compare("same", [0])
    assert (same.difference.value, same.nearer) == (0.0, None)
    only = PairedScores(four, two).compare("one", [1])
    assert only.kld == of_four.texts[1].comparison.kld


def test_the_scores_are_those_of_the_windows(journals) -> None:
    four, _, (of_four, _) = journals
    header, windows = read_windows(four)
    assert header["context"] == 16
    every = np.concatenate([one.kld for key, one in sorted(windows.items())])
    assert every.mean() == pytest.approx(of_four.total.comparison.kld.value)


def test_what_is_not_of_the_same_tokens_is_refused(journals, readable: Path, tmp_path: Path) -> None:
    four, _, _ = journals
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{3 + n % 60}" for n in range(80)))
    evaluate(readable, [text], against=readable, journal=tmp_path / "a.jsonl", **SMALL)
    with pytest.raises(UsageError, match="of different evaluations: texts differ"):
        PairedScores(four, tmp_path / "a.jsonl")
    evaluate(readable, [text], journal=tmp_path / "alone.jsonl", **SMALL)
    with pytest.raises(UsageError, match="compared with no other"):
        PairedScores(tmp_path / "alone.jsonl", tmp_path / "alone.jsonl")
    with pytest.raises(InputError, match="cannot be read"):
        read_windows(tmp_path / "none.jsonl")
    (tmp_path / "none.jsonl").write_text('{"a": 1}\n[]\n')
    with pytest.raises(UsageError, match="no record of an evaluation"):
        read_windows(tmp_path / "none.jsonl")
