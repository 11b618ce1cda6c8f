"""Teacher-forced quality of models on the evaluation text, each beside the full model.

The protocol is that of the bundled model's card: a domain's text is tokenised as one stream without special tokens and
cut into windows of 256 tokens that do not overlap, of which the first 47 are used (fewer where the text ends sooner).
In each window the first token is context and the other 255 are predicted. A model sees a window in one forward pass;
which experts were in memory does not matter, only which are in the store.

Letters: W windows, S tokens of a window, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

TEXTS = Path(__file__).resolve().parent / "data" / "eval"
DOMAINS = ("prose", "technical", "code", "chinese", "german")
WINDOW = 256
WINDOWS = 47
BATCH = 8


@dataclass
class Tally:
    """Sums over predicted tokens.

    Attributes:
        tokens: Number of predictions.
        nats: Sum of −log p of the tokens that came.
        divergence: Sum of KL(full ‖ this model) of the next-token distributions, in nats.
        same_top: Predictions whose most likely token is the full model's.
    """

    tokens: int = 0
    nats: float = 0.0
    divergence: float = 0.0
    same_top: int = 0

    @property
    def loss(self) -> float:
        """Mean loss in nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """The exponential of the loss."""
        return math.exp(self.loss)

    @property
    def kld(self) -> float:
        """Mean KL divergence in nats per token."""
        return self.divergence / self.tokens

    @property
    def same_top_share(self) -> float:
        """Share of predictions with the full model's most likely token."""
        return self.same_top / self.tokens

    @classmethod
    def total(cls, tallies: Sequence[Tally]) -> Tally:
        """All of them together: a mean over tokens, not over domains."""
        return cls(
            tokens=sum(tally.tokens for tally in tallies),
            nats=sum(tally.nats for tally in tallies),
            divergence=sum(tally.divergence for tally in tallies),
            same_top=sum(tally.same_top for tally in tallies),
        )

    def add(self, log_p_WSV: Tensor, full_WSV: Tensor, next_WS: Tensor) -> None:
        """Counts predictions.

        Args:
            log_p_WSV: This model's log-probabilities, float32.
            full_WSV: The full model's.
            next_WS: The tokens that came, int64.
        """
        self.tokens += next_WS.numel()
        self.nats -= log_p_WSV.gather(-1, next_WS.unsqueeze(-1)).double().sum().item()
        self.divergence += kl_div(log_p_WSV, full_WSV, reduction="sum", log_target=True).item()
        self.same_top += int((log_p_WSV.argmax(-1) == full_WSV.argmax(-1)).sum())


def text_files(further: Sequence[str] = ()) -> dict[str, Path]:
    """The evaluation texts by domain: those beside this script and further ones given as ``DOMAIN=FILE``."""
    files = {domain: TEXTS / f"{domain}.txt" for domain in DOMAINS}
    for text in further:
        domain, equals, path = text.partition("=")
        if not (domain and equals and path):
            raise SystemExit(f"--text {text}: write it like dialogue=some/file.txt")
        files[domain] = Path(path)
    return files


def read_windows(tokenizer: Any, path: Path, windows: int = WINDOWS) -> Tensor:
    """The first windows of a text.

    Args:
        tokenizer: The model's.
        path: A UTF-8 text.
        windows: The most to take.

    Returns:
        int64 [W, 256].
    """
    # verbose: the tokenizer would warn that the stream is longer than the model's context, which it is cut for here.
    ids = tokenizer(path.read_text(encoding="utf-8"), add_special_tokens=False, verbose=False)["input_ids"]
    count = min(windows, len(ids) // WINDOW)
    if count == 0:
        raise SystemExit(f"{path} has {len(ids)} tokens; a window takes {WINDOW}.")
    return torch.tensor(ids[: count * WINDOW]).view(count, WINDOW)


@torch.inference_mode()
def compare(full: Any, others: Mapping[str, Any], windows: Tensor) -> dict[str, Tally]:
    """Runs every model over the windows.

    Args:
        full: The model to compare with.
        others: Models by name; the full one may be among them.
        windows: int64 [W, 256].

    Returns:
        Tallies by name.
    """
    tallies = {name: Tally() for name in others}
    for batch in windows.split(BATCH):
        reference = _log_probabilities(full, batch)
        for name, model in others.items():
            log_p = reference if model is full else _log_probabilities(model, batch)
            tallies[name].add(log_p, reference, batch[:, 1:])
    return tallies


@torch.inference_mode()
def differing_windows(one: Any, other: Any, windows: Tensor) -> Iterator[int]:
    """Numbers of the windows whose logits are not the same bits from both models."""
    for number, window in enumerate(windows.split(1)):
        if not torch.equal(one(input_ids=window).logits, other(input_ids=window).logits):
            yield number


def _log_probabilities(model: Any, batch: Tensor) -> Tensor:
    """[W, S-1, V] float32, for the tokens after the first."""
    return log_softmax(model(input_ids=batch).logits[:, :-1].float(), dim=-1)
