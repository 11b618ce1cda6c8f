"""Who may compute now: the memory of all threads' forward passes and caches together stays what was planned for.

A budget provides for the keys and values, and for the activations, of so many tokens. One pass can be held against that
by itself; what several threads do at once, and caches that a caller keeps, have to be added up. A cache counts for as
long as it lives, whoever has it. Where there is no room,

- caches that are kept for later (:mod:`coterie.passes.idle_caches`) go, the one that was used longest ago first;
- a pass that begins sequences waits while other threads compute: it holds nothing yet, so nobody waits for it;
- a pass that goes on with a sequence is refused, because two of them that wait would wait for each other;
- and so is one that begins while nobody else computes: nobody is about to make room.
"""

from __future__ import annotations

import functools
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from coterie.errors import ContextLengthError
from coterie.hf.caches import caches_in, empty, reserved_length
from coterie.passes.forward_call import ForwardCall
from coterie.passes.idle_caches import IDLE
from coterie.passes.logits_room import LogitsRoom
from coterie.plan.heap import keep_off_heap

if TYPE_CHECKING:
    from transformers import PreTrainedModel

QUIET_S = 1.0
"""Seconds without a forward pass after which a thread counts as one that does not compute."""

POLL_S = 0.01
"""Seconds between two looks for room; caches are let go of without anybody being told."""

_FEW = 64
"""Tokens whose tensors are too small to be taken beside the heap."""

_LONG = 4
"""A pass of one part in so many of what was planned for is one that memory could become short in."""

_LARGER = "open the model with a larger max_context."


class Admitted:
    """A forward pass that was let in. One that an interrupt has lost counts no longer once it is collected.

    Args:
        call: The pass.
        size: Tokens of memory that its sequences take when it is over.
        tokens: Tokens whose activations it takes; its own, or more where it is asked for many logits.
    """

    __slots__ = ("__weakref__", "call", "size", "thread", "tokens")

    def __init__(self, call: ForwardCall, size: int, tokens: int) -> None:
        self.call = call
        self.size = size
        self.thread = threading.get_ident()
        self.tokens = tokens

    @property
    def kept(self) -> list[tuple[Any, int]]:
        """The caches given, with what of ``size`` each takes."""
        rows = self.call.rows
        if rows is None:
            return [(cache, self.size) for cache, _ in self.call.caches]
        return [(one, before + self.call.tokens) for one, before in zip(rows.caches, rows.lengths, strict=True)]


@dataclass(frozen=True, slots=True)
class _Kept:
    cache: weakref.ref[Any]
    size: int


class _Generations(threading.local):
    """Of each generation that goes on in this thread, the caches that it has used."""

    def __init__(self) -> None:
        self.seen: list[list[tuple[Admission, weakref.ref[Any]]]] = []


_generations = _Generations()


class Admission:
    """Lets the forward passes of one component in.

    Args:
        make_room: Has transformers let go of caches that it keeps for later; called before anything is refused.

    Attributes:
        logits: What there is for logits of many positions; None where nothing bounds them.
        lent: Tokens that caches may hold beyond those that the budget was made for, while somebody gives them room.
    """

    def __init__(self, make_room: Callable[[], None] | None = None) -> None:
        self.logits: LogitsRoom | None = None
        self.lent = 0
        self._make_room = make_room or _nothing
        self._lock = threading.Lock()
        self._passes: list[weakref.ref[Admitted]] = []
        self._kept: dict[int, _Kept] = {}
        # Thread → when its last pass ended.
        self._ended: dict[int, float] = {}

    def enter(self, call: ForwardCall, most: int) -> Admitted:
        """Waits until there is room for a pass; :meth:`leave` ends it.

        Args:
            call: The pass.
            most: Tokens that the memory budget was made for.

        Raises:
            ContextLengthError: If the pass is longer than that by itself, its logits are more than there is room for,
                or there is no room and none will come.
        """
        size = self._size(call, most)
        tokens = call.batch * call.tokens
        mine = Admitted(call, size, tokens if self.logits is None else self.logits.tokens(call, most))
        collected = False
        while not self._try(mine, most):
            if not collected:
                # A cache may be part of a cycle, or of what an exception remembers.
                collected = True
                self._make_room()
                gc.collect()
            elif (idle := IDLE.let_one_go(self._counts)) is not None:
                self.forget(idle)
            elif call.cached or not self._others_compute():
                raise self._refusal(mine, most)
            else:
                time.sleep(POLL_S)
        if tokens >= _FEW:
            keep_off_heap(tokens * _LONG >= most)
        return mine

    def leave(self, done: Admitted, caches: Iterable[Any] = ()) -> None:
        """A pass is over.

        Args:
            done: From :meth:`enter`.
            caches: Those that it has made.
        """
        with self._lock:
            self._passes = [one for one in self._passes if one() not in (None, done)]
            self._ended[done.thread] = time.monotonic()
            for cache in caches:
                self._keep(cache, done.size)

    def _size(self, call: ForwardCall, most: int) -> int:
        """Tokens of memory that the pass's sequences take when it is over."""
        length = call.cached + call.tokens
        if call.rows is not None:
            # Each has been let in for its own length: together they are refused, if at all, for what others hold.
            return sum(call.rows.lengths) + call.batch * call.tokens
        if call.batch * length > most:
            raise ContextLengthError(
                f"{call.batch} × {length} tokens are more than the {most} that the memory budget was made for.",
                advice="Open the model with a larger max_context, or use a shorter prompt or smaller batch.",
                tokens=call.batch * length,
                max_context=most,
            )
        reserved = max((reserved_length(cache) for cache, _ in call.caches), default=0)
        if call.batch * reserved > most:
            self._make_room()
            raise ContextLengthError(
                f"A cache that reserves {call.batch} × {reserved} tokens is larger than the {most} that the memory "
                "budget was made for.",
                advice="Use the default cache, which grows; or generate fewer tokens, or " + _LARGER,
                tokens=call.batch * reserved,
                max_context=most,
            )
        return call.batch * max(length, reserved)

    def _try(self, mine: Admitted, most: int) -> bool:
        with self._lock:
            passes = [one for ref in self._passes if (one := ref()) is not None]
            nested = any(one.thread == mine.thread for one in passes)
            if not nested and sum(one.tokens for one in passes) + mine.tokens > most:
                return False
            if self._held(mine, passes) + mine.size > most + self.lent:
                return False
            for cache, size in mine.kept:
                self._keep(cache, size)
            self._passes = [*map(weakref.ref, passes), weakref.ref(mine)]
            return True

    def _held(self, mine: Admitted, passes: Iterable[Admitted]) -> int:
        """Tokens that live caches hold, and that passes will hold which have no cache yet; those of a pass left out."""
        own = {id(cache) for cache, _ in mine.kept}
        for key in [key for key, kept in self._kept.items() if kept.cache() is None]:
            del self._kept[key]
        held = sum(kept.size for key, kept in self._kept.items() if key not in own)
        return held + sum(one.size for one in passes if not one.call.caches and one.thread != mine.thread)

    def _keep(self, cache: Any, size: int) -> None:
        known = self._kept.get(id(cache))
        if known is None or known.cache() is not cache or known.size != size:
            self._kept[id(cache)] = _Kept(weakref.ref(cache), size)
            if (known is None or known.cache() is not cache) and _generations.seen:
                _generations.seen[-1].append((self, weakref.ref(cache)))

    def forget(self, cache: Any) -> None:
        """A cache holds nothing any more."""
        with self._lock:
            self._kept.pop(id(cache), None)

    def _counts(self, cache: Any) -> bool:
        """Whether a cache takes room here."""
        with self._lock:
            known = self._kept.get(id(cache))
        return known is not None and known.cache() is cache

    def _others_compute(self) -> bool:
        me, since = threading.get_ident(), time.monotonic() - QUIET_S
        with self._lock:
            self._ended = {thread: at for thread, at in self._ended.items() if at >= since}
            passes = [one for ref in self._passes if (one := ref()) is not None]
            return any(one.thread != me for one in passes) or any(thread != me for thread in self._ended)

    def _refusal(self, mine: Admitted, most: int) -> ContextLengthError:
        with self._lock:
            held = self._held(mine, [one for ref in self._passes if (one := ref()) is not None])
        return ContextLengthError(
            f"{mine.size} tokens do not fit beside the {held} of other sequences that are still in memory: the memory "
            f"budget was made for {most + self.lent}.",
            advice="Let go of outputs that are no longer needed (each has its cache, past_key_values, unless "
            "use_cache=False was asked for), generate one after the other, or " + _LARGER,
            tokens=mine.size + held,
            max_context=most,
        )


class CachesUsed:
    """The caches that one generation uses, to be emptied if it fails. Its passes are computed inside the context.

    What is remembered of an exception (a traceback in a notebook, a future) would keep them, and there would be no room
    for the next generation. Nobody else can have them; caches that the caller gave are left alone.

    Args:
        given: What the caller gave.
    """

    __slots__ = ("_given", "_seen")

    def __init__(self, given: Iterable[object] = ()) -> None:
        self._given = caches_in(given)
        self._seen: list[tuple[Admission, weakref.ref[Any]]] = []

    def __enter__(self) -> None:
        _generations.seen.append(self._seen)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _generations.seen.pop()

    def let_go(self, but: object = None) -> None:
        """Empties them, all but one that is kept."""
        for admission, known in self._seen:
            cache = known()
            if cache is not None and cache is not but and all(cache is not one for one in self._given):
                empty(cache)
                admission.forget(cache)


def let_go_after_failure(model: PreTrainedModel) -> None:
    """Has ``model.generate`` empty the caches that it has made if it fails."""
    original = model.generate

    @functools.wraps(original)
    def generate(*args: Any, **kwargs: Any) -> Any:
        caches = CachesUsed((*args, *kwargs.values()))
        try:
            with caches:
                return original(*args, **kwargs)
        except BaseException:
            caches.let_go()
            raise

    model.__dict__["generate"] = generate


def _nothing() -> None:
    """There is nothing to let go of."""
