"""What the model says, and whom its routers choose.

Greedy decoding of random weights soon repeats itself, and two engines that round differently part ways. Here the text
is designed: all token ids stand in one long cycle, the *walk*. The residual stream is dominated by the embedding of the
present token (attention and experts add little), and the row of ``lm_head`` for a token is the embedding of the token
before it in the walk, so that the likeliest next token is always the next of the walk, by a margin that no engine's
rounding reaches. Every engine then computes the same tokens, and its experts and attention in full.

An embedding is ``√TOPIC · topic + √TOKEN · own + √STATIC · common`` with random directions of length 1. Routers are
random, so a layer's choice has a part that stays for as long as the topic does, a part that is new with every token,
and a part that never changes: persistence, surprise, skew. The walk visits a topic for RUN tokens, then another.

The constants were chosen once, on routing computed with numpy from embeddings and routers alone, so that an LRU cache
of each layer has on 512 decoded tokens the hit rates that Qwen3-30B-A3B has, about .65, .81 and .92 with room for
12.5, 25 and 50 % of the experts. They are not tuned to any engine and must not be.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

TOPIC = 0.43
TOKEN = 0.25
STATIC = 0.32
TOPICS = 64
RUN = 16

Ids = npt.NDArray[np.int64]

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
TOKEN_LENGTH = 3
"""Letters of every token's text."""


class Walk:
    """The cycle of all token ids.

    Args:
        vocabulary: How many there are.
        rng: Where randomness comes from.
        left_out: Ids that are not in it, such as those of roles and pictures. What follows one of them is the first id
            of the walk.

    Attributes:
        order: Ids in the order of the walk, int64 [ids that are not left out].
        topics: Topic of each id, int64 [vocabulary]; one that is left out has that of the walk's last.
    """

    def __init__(self, vocabulary: int, rng: np.random.Generator, left_out: Sequence[int] = ()) -> None:
        order: Ids = rng.permutation(vocabulary)
        self.order: Ids = order[~np.isin(order, left_out)] if left_out else order
        runs = rng.integers(TOPICS, size=-(-vocabulary // RUN)).repeat(RUN)[: len(self.order)]
        self.topics: Ids = np.full(vocabulary, runs[-1], dtype=np.int64)
        self.topics[self.order] = runs
        self._place: Ids = np.full(vocabulary, -1, dtype=np.int64)
        self._place[self.order] = np.arange(len(self.order))

    @property
    def predecessors(self) -> Ids:
        """For each id the one before it, int64 [vocabulary]; of one that is left out, nothing that means anything."""
        return self.order[self._place - 1]

    def tokens(self, first: int, count: int) -> list[int]:
        """``count`` ids of the walk from place ``first`` on."""
        ids: list[int] = self.order[(first + np.arange(count)) % len(self.order)].tolist()
        return ids

    def following(self, token: int, count: int) -> list[int]:
        """The ``count`` ids after ``token``."""
        return self.tokens(int(self._place[token]) + 1, count)


def text_of(token: int) -> str:
    """A token's text: three letters or digits, so that texts and ids translate one to one without spaces."""
    high, low = divmod(token, len(_ALPHABET))
    return _ALPHABET[high // len(_ALPHABET)] + _ALPHABET[high % len(_ALPHABET)] + _ALPHABET[low]


def token_of(text: str) -> int:
    """The id with this text."""
    token = 0
    for letter in text:
        token = token * len(_ALPHABET) + _ALPHABET.index(letter)
    return token
