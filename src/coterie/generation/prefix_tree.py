"""A tree of what prompts begin with: a node is a stretch of tokens after those of its parent, and what is kept of it.

When there is no room, a leaf goes: the one that would save the fewest seconds per byte, counted from its last use on.
This is GreedyDual: what was not used for long goes at last, however much it would save.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """What is kept of a stretch."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        ...


Kept = TypeVar("Kept", bound=Sized)


class Node(Generic[Kept]):
    """A stretch of tokens.

    Attributes:
        salt: Of the beginning of all prompts under a salt, that; None of a stretch.
        kept: What is kept of it; None of a beginning, and of what is no longer in the tree.
        parent: What comes before it; None likewise.
        children: What may follow, by what it is made of.
        seconds: How long it took to compute.
        due: What decides whether it goes; the smallest goes first.
    """

    __slots__ = ("children", "due", "kept", "key", "parent", "salt", "seconds")

    def __init__(
        self,
        key: bytes = b"",
        kept: Kept | None = None,
        parent: Node[Kept] | None = None,
        seconds: float = 0.0,
        *,
        salt: str | None = None,
    ) -> None:
        self.salt = salt
        self.key = key
        self.kept = kept
        self.parent = parent
        self.children: dict[bytes, Node[Kept]] = {}
        self.seconds = seconds
        self.due = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes that it takes, without its children."""
        return len(self.key) + (0 if self.kept is None else self.kept.nbytes)

    @property
    def worth(self) -> float:
        """Seconds saved per byte."""
        return self.seconds / max(1, self.nbytes)


class PrefixTree(Generic[Kept]):
    """Beginnings of prompts, in one tree per salt: what is kept under one is never found under another.

    Args:
        limit: Bytes that they may take together.

    Attributes:
        limit: That given; lower it with :meth:`shrink`.
        nbytes: Bytes that they take.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self._roots: dict[str, Node[Kept]] = {}
        self._leaves: dict[Node[Kept], None] = {}
        # What the last one that had to go was due at: what is used from now on counts from there.
        self._clock = 0.0

    def __len__(self) -> int:
        return sum(1 for root in self._roots.values() for _ in _below(root))

    def root(self, salt: str) -> Node[Kept]:
        """The beginning of all prompts under a salt."""
        return self._roots.get(salt) or Node(salt=salt)

    def used(self, node: Node[Kept]) -> None:
        """Says that somebody goes on after this stretch."""
        above: Node[Kept] | None = node
        while above is not None and above.kept is not None:
            above.due = self._clock + above.worth
            above = above.parent

    def room(self, nbytes: int, after: Node[Kept]) -> bool:
        """Makes room for a stretch that comes after another one; returns whether there is room."""
        if nbytes > self.limit or not self.holds(after):
            return False
        while self.nbytes + nbytes > self.limit:
            if not self._drop_one(but=after):
                return False
        return True

    def add(self, parent: Node[Kept], key: bytes, kept: Kept, seconds: float) -> Node[Kept] | None:
        """Keeps a stretch.

        Args:
            parent: What comes before it.
            key: What it is made of.
            kept: What is to be kept.
            seconds: How long it took to compute.

        Returns:
            Its node, which may have been there; None if there is no room.
        """
        if parent.salt is not None:
            # It is kept only while something follows it, and another may have been made since.
            parent = self._roots.get(parent.salt, parent)
        known = parent.children.get(key)
        if known is not None:
            return known
        node = Node(key, kept, parent, seconds)
        if not self.room(node.nbytes, parent):
            return None
        if parent.salt is not None:
            self._roots[parent.salt] = parent
        parent.children[key] = node
        self._leaves.pop(parent, None)
        self._leaves[node] = None
        self.nbytes += node.nbytes
        self.used(node)
        return node

    def holds(self, node: Node[Kept]) -> bool:
        """Whether a node is still in the tree."""
        return node.parent is not None or node.salt is not None

    def shrink(self, to: int) -> int:
        """Lets go until no more than so many bytes are taken; returns how many were freed. The limit stays."""
        before = self.nbytes
        while self.nbytes > max(0, to) and self._drop_one(but=None):
            pass
        return before - self.nbytes

    def clear(self, salt: str | None = None) -> None:
        """Lets go of all that is kept under a salt; of everything, without one."""
        for name in [salt] if salt is not None else list(self._roots):
            root = self._roots.get(name)
            for node in () if root is None else reversed(list(_below(root))):
                self._drop(node)

    def _drop_one(self, *, but: Node[Kept] | None) -> bool:
        """Lets the leaf go that is due first."""
        leaf = min((one for one in self._leaves if one is not but), key=lambda one: one.due, default=None)
        if leaf is None:
            return False
        self._clock = max(self._clock, leaf.due)
        self._drop(leaf)
        return True

    def _drop(self, leaf: Node[Kept]) -> None:
        parent = leaf.parent
        assert parent is not None
        del parent.children[leaf.key], self._leaves[leaf]
        self.nbytes -= leaf.nbytes
        leaf.parent = leaf.kept = None
        if parent.children:
            return
        if parent.salt is None:
            self._leaves[parent] = None
        else:
            self._roots.pop(parent.salt, None)


def _below(node: Node[Kept]) -> Iterator[Node[Kept]]:
    """All that may follow, every stretch before what follows it."""
    left = [*node.children.values()]
    while left:
        child = left.pop()
        yield child
        left += child.children.values()
