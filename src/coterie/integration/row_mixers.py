"""Next tokens of several sequences in one pass of a model whose layers are its classes' own: only attention is apart.

Embedding, norms, linear layers, routers and experts are given all rows at once, as a batch that is padded at the
beginning. What mixes tokens, a :class:`~coterie.hf.mixers.Mixer`, is called for one row after the other, with its own
cache, as it is called for that row alone; but its linear layers at the beginning and at its end, which are most of what
it reads of memory, are computed once for all.

Rows get other last bits so than alone: torch's products round by how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import Cache

from coterie.hf.cache_states import Mark, known_layers
from coterie.hf.mixers import Mixer, mixers, why_not_apart
from coterie.hf.row_caches import RowCaches, RowsAllLeftError, RowsApartError
from coterie.kernels import QuantisedLinear, StockLinear
from coterie.native import MOST_ROWS
from coterie.passes.forwards import Forward, standing_in

_ROWWISE = (nn.Linear, StockLinear, QuantisedLinear)
"""Classes that compute each row by itself, whatever is beside it."""


class RowMixers:
    """The mixers of a model that computes several rows together, each with other last bits than alone.

    Args:
        found: In the order of its layers.

    Attributes:
        exact: Whether rows have the bits that they have alone.
        most: Rows of a pass at most.
    """

    exact = False
    most = MOST_ROWS

    def __init__(self, found: Sequence[Mixer]) -> None:
        self._mixers = [_KnownMixer(mixer) for mixer in found]

    @classmethod
    def of(cls, model: nn.Module) -> RowMixers | None:
        """None for a model whose mixers cannot be called apart.

        Args:
            model: A model with its experts connected.
        """
        return cls(mixers(model)) if why_apart(model) is None else None

    def rooms(self, caches: Sequence[Any], lengths: Sequence[int], let_go: Callable[[int], None]) -> MixedRows | None:
        """Room for another token of each sequence; None if one has a cache of another kind.

        Args:
            caches: Their caches.
            lengths: Tokens in each.
            let_go: As :class:`MixedRows` takes it.
        """
        layers = len(self._mixers)
        for cache, length in zip(caches, lengths, strict=True):
            if not known_layers(cache) or len(cache.layers) != layers or getattr(cache, "offloading", False):
                return None
            if any(not layer.is_initialized or layer.get_seq_length() != length for layer in cache.layers):
                return None
        # Without version counters it is not seen whether a tensor was changed in place.
        return None if torch.is_inference_mode_enabled() else MixedRows(caches, lengths, self._mixers, let_go)


def why_apart(model: nn.Module) -> str | None:
    """Why a model computes no rows together, whatever bits they get; None if it does.

    Args:
        model: With its weights or without.
    """
    return why_not_apart(model, mixers(model))


class MixedRows(RowCaches, Cache):  # type: ignore[misc]  # transformers has no types
    """The caches of rows whose mixers are called one after the other.

    What transformers asks to make a mask it answers for the longest row: the others are padded at their beginning.

    A row may leave while the pass goes on. At the next layer its cache is let go of, and what it mixes is nothing.

    Args:
        caches: Caches that are put back by a :class:`~coterie.hf.cache_states.Mark`, one for each row.
        lengths: Tokens in each.
        known: The model's mixers.
        let_go: Told of a row that has left, to let go of its cache.
    """

    def __init__(
        self,
        caches: Sequence[Any],
        lengths: Sequence[int],
        known: Sequence[_KnownMixer],
        let_go: Callable[[int], None],
    ) -> None:
        super().__init__(caches, lengths, let_go, depth=len(known))
        # Asked before the first layer is computed.
        self._longest = caches[max(range(len(caches)), key=self.lengths.__getitem__)]
        # What the class finds out about a cache it finds out of these.
        self.layers: list[Any] = self._longest.layers
        self.layer_class_to_replicate, self.offloading = None, False
        self._known = known
        self._marks: list[Mark | None] = [Mark(cache) for cache in caches]

    @property
    def inputs(self) -> dict[str, Any]:
        """The mask that hides what rows are padded with, [rows, length]."""
        length = max(self.lengths) + 1
        if min(self.lengths) + 1 == length:
            return {}
        places = torch.arange(length)
        return {"attention_mask": torch.stack([(places >= length - 1 - one).long() for one in self.lengths])}

    def get_mask_sizes(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """What a mask would be as long as, and where it would begin."""
        sizes: tuple[int, int] = self._longest.get_mask_sizes(*args, **kwargs)
        return sizes

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Inside, the model computes the pass. The caches are as they were if it fails."""
        try:
            with standing_in([(known.mixer.module, _RowByRow(known, self)) for known in self._known]):
                yield
            if not self.through:
                raise RowsApartError(f"{self._computed} of {self._depth} layers were called.")
        except BaseException:
            for mark in self._marks:
                if mark is not None:
                    mark.put_back()
            raise

    def come_to(self, layer_idx: int) -> list[Any]:
        """The caches of the rows, None of those that have left.

        Raises:
            RowsAllLeftError: If nobody wants any of them.
            RowsApartError: If layers do not come one after the other.
        """
        self._begin_layer(layer_idx)
        for row in tuple(self._leaving):
            mark, self._marks[row] = self._marks[row], None
            if mark is not None:
                mark.put_back()
                if self.caches[row] is self._longest:
                    self._longest, self.layers = None, []
                self.caches[row] = None
                self._let_go(row)
        if all(cache is None for cache in self.caches):
            raise RowsAllLeftError
        return self.caches


class _KnownMixer:
    """A mixer, and what was found out about its linear layers.

    Attributes:
        mixer: The mixer.
        linears: Its linear layers.
        last: The one whose output it returns; None if there is none, or before it was looked for.
        looked: Whether it was.
    """

    def __init__(self, mixer: Mixer) -> None:
        self.mixer = mixer
        self.linears = [module for module in mixer.module.modules() if type(module) in _ROWWISE]
        self.last: nn.Module | None = None
        self.looked = False

    def learn(self, outputs: list[tuple[nn.Module, torch.Tensor, int]], returned: Any) -> None:
        """A row was computed.

        Args:
            outputs: What its linear layers gave, one after the other, each as it was then.
            returned: What it returned.
        """
        self.looked = True
        if outputs:
            module, output, version = outputs[-1]
            once = sum(one is module for one, _, _ in outputs) == 1
            self.last = module if once and returned is output and output._version == version else None


class _RowByRow:
    """Stands for a mixer's forward: calls it for one row after the other."""

    def __init__(self, known: _KnownMixer, rooms: MixedRows) -> None:
        self._known = known
        self._rooms = rooms
        self._beneath: Forward = known.mixer.module.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mixer = self._known.mixer
        given = mixer.named(args, kwargs)
        hidden = mixer.hidden(given)
        caches, lengths = self._rooms.come_to(mixer.layer_idx), self._rooms.lengths
        if len(hidden) != len(caches):
            raise RowsApartError(f"{mixer} is given {len(hidden)} of {len(caches)} sequences.")
        call = _Call(self._known, hidden)
        returned: list[Any] = []
        with standing_in([(linear, _Joint(call, linear)) for linear in self._known.linears]):
            for row, cache in enumerate(caches):
                if cache is None:
                    continue
                own = mixer.of_row(
                    given, row, rows=len(caches), hidden=call.begin(row), cache=cache, length=lengths[row]
                )
                returned.append(self._beneath(**own))
                call.end(returned[-1])
        return call.together(returned, [row for row, cache in enumerate(caches) if cache is not None], self._rooms)


class _Call:
    """One call of a mixer for several rows: where its linear layers meet.

    Args:
        known: The mixer.
        hidden: What it is given, [rows, 1, width].

    Attributes:
        hidden: That given.
        row: The row that is being computed.
        own: What it is given of it.
    """

    def __init__(self, known: _KnownMixer, hidden: torch.Tensor) -> None:
        self.hidden = hidden
        self.row = 0
        self.own = hidden
        self._known = known
        self._outputs: list[tuple[nn.Module, torch.Tensor, int]] = []
        # What the last linear layer is given of each row, and what it gave instead of its output.
        self._waiting: list[torch.Tensor] = []
        self._promised: torch.Tensor | None = None
        # That of this call: a row that has gone before is not waited for.
        self._last = known.last
        self._compute_last: Forward | None = None

    def begin(self, row: int) -> torch.Tensor:
        """The next row; returns what is given of it."""
        self.row, self.own, self._promised = row, self.hidden[row : row + 1], None
        return self.own

    def promise(self, module: Any, beneath: Forward, input: torch.Tensor) -> torch.Tensor | None:
        """In place of the last linear layer's output, which is computed when all rows are there; None for others."""
        if self._last is None or module is not self._last:
            return None
        if self._promised is not None:
            raise RowsApartError(f"{self._known.mixer} calls its last linear layer twice.")
        self._waiting.append(input)
        self._compute_last = beneath
        linear: Any = module
        self._promised = input.new_empty((*input.shape[:-1], linear.out_features))
        return self._promised

    def note(self, module: nn.Module, output: torch.Tensor) -> None:
        """A linear layer gave this of the row alone."""
        if not self._known.looked:
            self._outputs.append((module, output, output._version))

    def end(self, returned: Any) -> None:
        """The row was computed.

        Raises:
            RowsApartError: If what was promised went another way than it was found to go.
        """
        first = returned[0] if isinstance(returned, tuple) else returned
        if not isinstance(first, torch.Tensor):
            raise RowsApartError(f"{self._known.mixer} returns a {type(returned).__name__}.")
        if not self._known.looked:
            self._known.learn(self._outputs, first)
            self._outputs.clear()
        elif self._last is not None and (first is not self._promised or first._version):
            raise RowsApartError(f"{self._known.mixer} returns something else than before.")

    def together(self, returned: list[Any], rows: list[int], cache: object) -> Any:
        """What the mixer returns for all.

        Args:
            returned: What it returned for each that has not left.
            rows: Which these are.
            cache: That of all.
        """
        firsts = [one[0] if isinstance(one, tuple) else one for one in returned]
        mixed = torch.cat(firsts) if self._compute_last is None else self._compute_last(torch.cat(self._waiting))
        if len(rows) < len(self.hidden):
            whole = mixed.new_zeros((len(self.hidden), *mixed.shape[1:]))
            whole[rows] = mixed
            mixed = whole
        if not isinstance(returned[0], tuple):
            return mixed
        # Of attention's weights, which have a length for each row, nobody is told.
        return mixed, *(cache if isinstance(one, Cache) else None for one in returned[0][1:])


class _Joint:
    """Stands for a linear layer's forward while its mixer is called for one row after the other."""

    def __init__(self, call: _Call, module: nn.Module) -> None:
        self._call = call
        self._module = module
        self._beneath: Forward = module.forward
        self._whole: torch.Tensor | None = None
        self._taken = -1

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        call = self._call
        if input is call.own and self._taken < call.row:
            if self._whole is None:
                self._whole = self._beneath(call.hidden)
            self._taken = call.row
            return self._whole[call.row : call.row + 1]
        promised = call.promise(self._module, self._beneath, input)
        if promised is not None:
            return promised
        output: torch.Tensor = self._beneath(input)
        call.note(self._module, output)
        return output
