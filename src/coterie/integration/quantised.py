"""Experts computed from the codes that a store has, without making parameters of them.

:class:`QuantisedExperts` does it for any number of tokens, :class:`TokenExperts` for a decode step that has to read
nothing: in one native call, which looks for the experts itself.
"""

from __future__ import annotations

import functools

import torch
from torch import nn

from coterie import native
from coterie.cache import BankView, Tensors
from coterie.errors import LoadError
from coterie.native import ExpertsKernel, Library, Located, Places, TokenState, library
from coterie.native.experts import ACTIVATIONS
from coterie.passes.bank import StreamedBank
from coterie.passes.contributions import Contributions, Written
from coterie.passes.current import Pass
from coterie.passes.decoder import BankDecoder, FieldDecoder
from coterie.spec.encodings import NATIVE
from coterie.spec.parameters import StoredParameter

_UP, _DOWN = "gate_up_proj", "down_proj"


class QuantisedExperts:
    """The experts of a bank whose matrices are in lossy schemes, each in its own, by the native library.

    Some may be native in bfloat16. Where all are, experts have the bits of stock transformers, not computed here.

    Args:
        streamed: The bank, connected.
        decoder: What would make parameters of its records.
        kernel: Computes them.
    """

    def __init__(self, streamed: StreamedBank, decoder: BankDecoder, kernel: ExpertsKernel) -> None:
        self._streamed = streamed
        self._decoder = decoder
        self._kernel = kernel
        # Where its fields are, counted from the first one, which is the same in every slot; by expert, once it was met.
        self._distances: list[Places | None] = [None] * streamed.bank.num_experts

    @classmethod
    def of(cls, streamed: StreamedBank, activation: nn.Module | None) -> QuantisedExperts | None:
        """For a bank of common SwiGLU experts; None where the native library does not serve it.

        Args:
            streamed: The bank, connected.
            activation: The class's activation function.
        """
        found, decoder, bank = library(), streamed.decoder, streamed.bank
        name = activation_name(activation)
        if found is None or decoder is None or name is None or bank.dtypes[_UP] != torch.bfloat16:
            return None
        schemes = bank_schemes(decoder)
        width, inner = bank.parameters[_DOWN]
        if schemes is None or bank.parameters[_UP] != (2 * inner, width):
            return None
        if not ExpertsKernel.served(found, schemes=schemes, activation=name, width=width, inner=inner):
            return None
        return cls(streamed, decoder, _kernel(found, schemes, name, bank.num_experts, width, inner))

    def serves(self, hidden_TD: torch.Tensor) -> bool:
        """Whether this input is computed here."""
        return hidden_TD.dtype is torch.bfloat16 and not torch.is_autocast_enabled("cpu")

    def compute(
        self,
        now: Pass,
        hidden_TD: torch.Tensor,
        index_TK: torch.Tensor,
        weights_TK: torch.Tensor,
        absent: int,
        noted: Contributions | None = None,
        *,
        rows: bool = False,
    ) -> torch.Tensor:
        """What the experts add, [T, D]; counts and tells how they became resident, and notes what each adds.

        With ``rows``, each token has the bits that it has alone.
        """
        streamed = self._streamed
        norms_TK = None if noted is None else noted.norms_TK
        computation = self._kernel.begin(hidden_TD, index_TK, weights_TK, now.memory, rows=rows)
        ids = computation.experts
        held = streamed.try_hold(now, ids) if streamed.may_hold(now) else None
        if held is not None:
            try:
                streamed.look_ahead()
                result = computation.finish(
                    [self._locate(id, each) for id, each in zip(ids, held.tensors, strict=True)], norms_TK=norms_TK
                )
            finally:
                held.release()
            streamed.served_from_memory(now, len(ids), absent, noted)
            return result
        with streamed.lease(now, ids) as lease:
            streamed.look_ahead()
            # One call for all that are there, while the others are read.
            for batch in lease.batches(streamed.batch_nbytes):
                computation.compute([self._locate(key.expert, tensors) for key, tensors in batch])
            result, stats = computation.finish(norms_TK=norms_TK), lease.stats
        streamed.served(now, stats, absent, noted)
        return result

    def token_experts(self) -> TokenExperts | None:
        """For a decode step, by one call; None where experts are absent."""
        view = self._streamed.view
        if self._streamed.missing is not None or view is None:
            return None
        places = [_places(self._decoder.of(key)) for key in self._streamed.keys]
        addresses = view.addresses(self._kernel.library)
        return TokenExperts(self._streamed, view, native.TokenExperts(self._kernel, addresses, places))

    def _locate(self, expert: int, tensors: Tensors) -> Located:
        distances = self._distances[expert]
        if distances is None:
            distances = self._distances[expert] = self._measure(expert, tensors)
        first = tensors[0].data_ptr()
        up, codes, scales, down, more, others = distances
        return (expert, up, first + codes, first + scales, down, first + more, first + others)

    def _measure(self, expert: int, tensors: Tensors) -> Places:
        key = self._streamed.keys[expert]
        decoder = self._decoder.of(key)
        schemes = matrix_schemes(decoder)
        if schemes is None or not self._kernel.schemes.issuperset(schemes):
            raise LoadError(
                f"Expert {key} is stored in another way than the experts that its bank had before.",
                advice="The store has changed since it was opened; open it again.",
                key=key,
            )
        fields = (tuple(tensors[i] for i in decoder.parameters[name].positions) for name in (_UP, _DOWN))
        self._kernel.locate(expert, *zip(schemes, fields, strict=True))
        up, codes, scales, down, more, others = _places(decoder)
        begin = decoder.layout.fields[0].offset
        return (up, codes - begin, scales - begin, down, more - begin, others - begin)


class TokenExperts:
    """What a decode step does instead of calling the experts module, while nothing has to be read.

    Args:
        streamed: The bank, connected, none of whose experts is absent.
        view: Its experts in the cache.
        computed: Computes them.
    """

    def __init__(self, streamed: StreamedBank, view: BankView, computed: native.TokenExperts) -> None:
        self._streamed = streamed
        self._view = view
        self._computed = computed

    def compute(self, state: TokenState) -> torch.Tensor | None:
        """The residual with what the experts add, [T, 1, D]; counts and tells as the experts module would.

        Args:
            state: Through the layer, with its results.

        Returns:
            None if not all that was chosen are resident, or some may be left out: then nothing was computed, and the
            experts module is to be called. Where an expert has left at the last moment, the pass has looked ahead
            nevertheless, and does so again there: what was predicted, and is not resident, counts twice.

        Raises:
            UsageError: If the cache is closed.
            Stopped: If nobody wants the pass any more.
        """
        streamed = self._streamed
        now = streamed.now()
        if (request := now.request) is not None and request.before_layer is not None:
            request.before_layer()
        if now.limit is not None or not streamed.may_hold(now) or not self._computed.there(state):
            return None
        self._view.asked(now.consumer)
        streamed.look_ahead()
        whole = self._computed.compute(state, norms=now.contributions)
        if whole is not None:
            results = state.results
            ids: list[int] = results.ids.tolist()[0] if state.rows == 1 else streamed.experts_in(results.ids)
            self._view.note(ids)
            if now.observers:
                streamed.chosen(now, results.ids, results.weights)
            streamed.served_from_memory(now, len(ids), 0, Written(results.norms) if now.contributions else None)
        return whole


@functools.cache
def _kernel(
    loaded: Library, schemes: frozenset[str], activation: str, num_experts: int, width: int, inner: int
) -> ExpertsKernel:
    """Layers of the same shape share one, and with it its working memory."""
    return ExpertsKernel(
        loaded, schemes=schemes, activation=activation, num_experts=num_experts, width=width, inner=inner
    )


def bank_schemes(decoder: BankDecoder) -> frozenset[str] | None:
    """The schemes of a bank's matrices.

    None if some are in a form that the native library does not compute with, or all are native.
    """
    found: set[str] = set()
    for one in decoder.decoders:
        schemes = matrix_schemes(one)
        if schemes is None:
            return None
        found.update(schemes)
    return frozenset(found) if found - {NATIVE} else None


def matrix_schemes(decoder: FieldDecoder) -> tuple[str, str] | None:
    """The schemes in which a record holds gate_up and down as [outputs, inputs]; None if it holds one otherwise."""
    up, down = (_scheme(decoder, decoder.parameters[name]) for name in (_UP, _DOWN))
    return None if up is None or down is None else (up, down)


def _scheme(decoder: FieldDecoder, stored: StoredParameter) -> str | None:
    if stored.encoding is None:
        return NATIVE if decoder.layout.fields[stored.positions[0]].dtype == "BF16" else None
    return stored.encoding.name if stored.encoding.name in native.SCHEMES and not stored.transposed else None


def _places(decoder: FieldDecoder) -> Places:
    """Where a record has the fields of its matrices. What is native has no scales."""
    found: list[int] = []
    for name, scheme in zip((_UP, _DOWN), matrix_schemes(decoder) or (), strict=True):
        offsets = [decoder.layout.fields[i].offset for i in decoder.parameters[name].positions]
        found += [native.EXPERT_SCHEMES.index(scheme), offsets[0], offsets[-1]]
    up, codes, scales, down, more, others = found
    return up, codes, scales, down, more, others


def activation_name(activation: nn.Module | None) -> str | None:
    """Which of the library's activations a function is, by what it computes; None if it is none of them."""
    if activation is None:
        return None
    x = torch.linspace(-8, 8, 257)
    functional = torch.nn.functional
    candidates = {
        "silu": functional.silu(x),
        "gelu": functional.gelu(x),
        "gelu_tanh": functional.gelu(x, approximate="tanh"),
        "relu": functional.relu(x),
    }
    with torch.no_grad():
        got = activation(x)
    return next((name for name in ACTIVATIONS if torch.allclose(got, candidates[name], rtol=1e-6, atol=1e-7)), None)
