"""What is kept of prompts in memory: pieces that follow one another, ends of prompts, and what they were good for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from coterie.generation.prefix_tree import Node, PrefixTree
from coterie.generation.prompt_ends import PromptEnd
from coterie.hf.cache_states import Stretch
from coterie.hf.generation_steps import Prepared, piece_end, prompt_length

KeptNode = Node[Stretch | PromptEnd]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixCounts:
    """What became of the prompts so far.

    Attributes:
        prompts: Prompts that could have begun with something that was kept.
        hits: Those that did.
        tokens: Tokens that were not computed again.
        seconds: How long computing them took when it was done.
    """

    prompts: int = 0
    hits: int = 0
    tokens: int = 0
    seconds: float = 0.0


class KeptPieces:
    """Pieces and ends of prompts to one model. Several threads may use it.

    Args:
        limit: Bytes that they may take.
    """

    def __init__(self, limit: int) -> None:
        self._tree: PrefixTree[Stretch | PromptEnd] = PrefixTree(limit)
        # Whoever makes room for what is found may make these fewer.
        self._lock = threading.RLock()
        self._counts = PrefixCounts()

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return self._tree.nbytes

    @property
    def limit(self) -> int:
        """Bytes that they may take; setting it lets go of what is too much."""
        return self._tree.limit

    @limit.setter
    def limit(self, limit: int) -> None:
        with self._lock:
            self._tree.limit = max(0, limit)
            self._tree.shrink(limit)

    @property
    def counts(self) -> PrefixCounts:
        """What became of the prompts so far."""
        return self._counts

    def __len__(self) -> int:
        """How many there are."""
        with self._lock:
            return len(self._tree)

    def shrink(self, to: int) -> int:
        """Lets go until no more than so many bytes are taken; returns how many were freed."""
        with self._lock:
            return self._tree.shrink(to)

    def clear(self, salt: str | None) -> None:
        """Forgets all that is kept under a salt; everything, without one."""
        with self._lock:
            self._tree.clear(salt)

    def find(self, after: KeptNode, prepared: Prepared, begin: int, size: int) -> list[KeptNode]:
        """The pieces of a prompt that are kept, from a place on; they count as used."""
        found: list[KeptNode] = []
        with self._lock:
            node = self._tree.root(after.salt) if after.salt is not None else after
            while (end := piece_end(prepared, begin, size)) < prompt_length(prepared):
                child = node.children.get(piece_key(prepared, begin, end))
                if child is None or child.kept is None:
                    break
                found.append(child)
                node, begin = child, end
            if found:
                self._tree.used(node)
        return found

    def find_end(self, after: KeptNode, key: bytes) -> tuple[PromptEnd, float] | None:
        """What is kept of the end of a prompt, and how long it took."""
        with self._lock:
            node = self._tree.root(after.salt) if after.salt is not None else after
            child = node.children.get(key)
            if child is None or not isinstance(child.kept, PromptEnd):
                return None
            self._tree.used(child)
            return child.kept, child.seconds

    def root(self, salt: str) -> KeptNode:
        """The beginning of all prompts under a salt."""
        with self._lock:
            return self._tree.root(salt)

    def keep(
        self, after: KeptNode, key: bytes, nbytes: int, make: Callable[[], Stretch | PromptEnd | None], seconds: float
    ) -> KeptNode | None:
        """Keeps what was computed; returns its node, None if there is no room.

        Args:
            after: What comes before it.
            key: What it is made of.
            nbytes: Bytes that it takes.
            make: Makes it, once there is room.
            seconds: How long it took to compute.
        """
        with self._lock:
            if not self._tree.room(len(key) + nbytes, after) or (made := make()) is None:
                return None
            return self._tree.add(after, key, made, seconds)

    def count(self, *, prompts: int = 0, hits: int = 0, tokens: int = 0, seconds: float = 0.0) -> None:
        """Counts what was asked for, and what need not be computed."""
        with self._lock:
            before = self._counts
            self._counts = PrefixCounts(
                prompts=before.prompts + prompts,
                hits=before.hits + hits,
                tokens=before.tokens + tokens,
                seconds=before.seconds + seconds,
            )


def piece_key(prepared: Prepared, begin: int, end: int) -> bytes:
    """What a piece is made of: its tokens, and what its placeholders stand for."""
    ids = prepared.ids[0, begin:end].contiguous().numpy().tobytes()
    shown = b"".join(f" {one.begin - begin} ".encode() + one.digest for one in prepared.media.within(begin, end))
    return f"{end - begin} ".encode() + ids + shown
