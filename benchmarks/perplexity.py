"""Teacher-forced quality of models on the evaluation text, each beside the full model.

The protocol is that of the bundled model's card: a domain's text is tokenised as one stream without special tokens and
cut into windows of 256 tokens that do not overlap, of which the first 47 are used (fewer where the text ends sooner).
In each window the first token is context and the other 255 are predicted. A model sees a window in one forward pass;
which experts were in memory does not matter, only which are in the store. The figures are those of `coterie evaluate`,
which predicts the first token of a window too, from the window before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from coterie.evaluate import (
    Quality,
    Text,
    TokenScores,
    Window,
    block_starts,
    encode,
    measure,
    predict,
    read_text,
    score,
)

TEXTS = Path(__file__).resolve().parent / "data" / "eval"
DOMAINS = ("prose", "technical", "code", "chinese", "german")
WINDOW = 256
WINDOWS = 47


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """The part of a domain's text that is used.

    Attributes:
        text: Its tokens.
        windows: The first token of each is context only.
    """

    text: Text
    windows: tuple[Window, ...]

    def first(self, windows: int) -> Passage:
        """The passage with no more than so many windows."""
        return Passage(text=self.text, windows=self.windows[:windows])


def text_files(further: Sequence[str] = ()) -> dict[str, Path]:
    """The evaluation texts by domain: those beside this script and further ones given as ``DOMAIN=FILE``."""
    files = {domain: TEXTS / f"{domain}.txt" for domain in DOMAINS}
    for text in further:
        domain, equals, path = text.partition("=")
        if not (domain and equals and path):
            raise SystemExit(f"--text {text}: write it like dialogue=some/file.txt")
        files[domain] = Path(path)
    return files


def read_passage(tokenizer: Any, domain: str, path: Path, windows: int = WINDOWS) -> Passage:
    """The first windows of a text.

    Args:
        tokenizer: The model's.
        domain: Name of the text.
        path: A UTF-8 text.
        windows: The most to take.
    """
    text = encode(tokenizer, read_text(path), name=domain)
    starts = range(0, len(text.ids) - WINDOW + 1, WINDOW)[:windows]
    if not starts:
        raise SystemExit(f"{path} has {len(text.ids)} tokens; a window takes {WINDOW}.")
    return Passage(
        text=text, windows=tuple(Window(start=start, first=start + 1, stop=start + WINDOW) for start in starts)
    )


def compare(full: Any, others: Mapping[str, Any], passage: Passage) -> dict[str, TokenScores]:
    """Runs every model over a passage.

    Args:
        full: The model to compare with.
        others: Models by name; the full one may be among them.
        passage: What to predict.

    Returns:
        Scores by name.
    """
    scores: dict[str, list[TokenScores]] = {name: [] for name in others}
    for window in passage.windows:
        following = passage.text.ids[window.predicted]
        reference = predict(full, passage.text, window)
        for name, model in others.items():
            logits = reference if model is full else predict(model, passage.text, window)
            scores[name].append(score(logits, following, reference))
    return {name: TokenScores.join(parts) for name, parts in scores.items()}


def summarise(name: str, scores: Sequence[TokenScores], passages: Sequence[Passage]) -> Quality:
    """The figures of one or several passages together."""
    starts = [block_starts([window.tokens for window in passage.windows], WINDOW) for passage in passages]
    return measure(name, scores, starts)


def differing_windows(one: Any, other: Any, passage: Passage) -> Iterator[int]:
    """Numbers of the windows whose logits are not the same bits from both models."""
    for number, window in enumerate(passage.windows):
        if not torch.equal(predict(one, passage.text, window), predict(other, passage.text, window)):
            yield number
