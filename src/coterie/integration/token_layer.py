"""A decoder layer's forward that is two native calls, one of them its experts, in decode steps of a few sequences."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from coterie.errors import UsageError
from coterie.hf.caches import is_cache
from coterie.hf.forwards import same_forward
from coterie.integration.adapters.decorated import DecoratedExperts
from coterie.integration.followed import Followed, followed_by
from coterie.integration.growing_cache import extend
from coterie.integration.padding import padding_by
from coterie.integration.quantised import TokenExperts
from coterie.integration.row_rooms import RowRooms
from coterie.kernels import QuantisedLinear
from coterie.kernels.dense import NormForward
from coterie.native import (
    MOST_ROWS,
    KeyValueRoom,
    LayerNorm,
    LayerParts,
    Library,
    NativeLayer,
    PackedMatrix,
    Results,
    StageTimes,
    TokenState,
    TokenStates,
)
from coterie.passes.current import current
from coterie.passes.forwards import Examined, Seen, at, own
from coterie.passes.lookahead import Site, WatchedRouter

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj")
"""The linear layers of attention, by name."""
_IDLE = frozenset(
    {"position_ids", "cache_position", "use_cache", "output_router_logits", "output_hidden_states", "return_dict"}
)
"""Arguments of a layer that change nothing in what it returns: the rotary embedding has the positions in it."""
_Carried = tuple[Any, tuple[torch.Tensor, torch.Tensor], torch.Tensor | None]
"""A cache, cosine and sine, and a mask."""
_HELPERS = ("apply_rotary_pos_emb", "rotate_half")


class _Round:
    """How far a stack of layers is; a forward pass may go through it more than once.

    Attributes:
        cosine: Of the rotary embedding, by which a round is known: it is made anew for each.
        place: The layer that it came to last.
        changed: Places of the layers that were not intact when it began.
        with_changed_experts: Those whose experts were not.
        mask: The mask that ``padding`` was found in.
        padding: Tokens before each sequence that are hidden from it; None if the mask hides others.
    """

    def __init__(self) -> None:
        self.cosine: torch.Tensor | None = None
        self.place = 0
        self.changed: frozenset[int] = frozenset()
        self.with_changed_experts: frozenset[int] = frozenset()
        self.mask: torch.Tensor | None = None
        self.padding: list[int] | None = None

    def padding_by(self, mask: torch.Tensor) -> list[int] | None:
        """What a mask hides, looked for once."""
        if self.mask is not mask:
            self.mask, self.padding = mask, padding_by(mask)
        return self.padding


class LayerGroup:
    """The native layers of a stack, looked over once for every time that it is gone through.

    Looking at a dozen modules is quick where they were just looked at. After a layer's weights have gone through the
    caches, it takes longer than all that a layer does natively beside its products.

    Args:
        states: Working memory.

    Attributes:
        states: Working memory.
    """

    def __init__(self, states: TokenStates) -> None:
        self.states = states
        self._layers: list[TokenLayer] = []

    def join(self, layer: TokenLayer) -> int:
        """Takes a layer in, after those that run before it; returns its place."""
        self._layers.append(layer)
        return len(self._layers) - 1

    def begun(self, place: int, cosine: torch.Tensor) -> _Round | None:
        """What is known of a round that comes to a layer; None if this was not intact when it began.

        Args:
            place: The layer's.
            cosine: Of the rotary embedding, which is made once for every time.
        """
        now = current().state(self, _Round)
        if now.cosine is not cosine or place <= now.place:
            now.cosine = cosine
            now.changed = frozenset(i for i, layer in enumerate(self._layers) if not layer.intact)
            routed = ((i, layer) for i, layer in enumerate(self._layers) if layer.routed)
            now.with_changed_experts = frozenset(i for i, layer in routed if not layer.experts_intact)
        now.place = place
        return None if place in now.changed else now


class TokenLayer:
    """A decoder layer's forward: native for one token after others, of one sequence or a few, else the class's own.

    Several sequences go through it where their experts are all in the store and computed natively, each with the bits
    that it has alone. They may be padded at their beginning.

    What follows attention may be nothing but a router and experts, these and a feed-forward block that all tokens
    share, or such a block alone. Then it stands for all of that; for the experts, too, while all that the router chose
    are resident. Whatever else it may be is called as the class calls it. It stands for the forwards that its
    submodules had when it was made, or last examined: where one has another since, or a hook, the class's own forward
    runs and calls them.

    Args:
        module: The layer.
        native: How it is computed.
        group: The layers of the same stack; this one joins them.
        after: What of it follows attention.

    Attributes:
        routed: Whether it stands for a router.
        layer_idx: Its layer of a cache.
        kept: Heads of a token's key, and values of each.
        times: What stages take is added to these; None where nobody wants to know.
        stands_for: The submodules that are not called.
    """

    def __init__(self, module: nn.Module, native: NativeLayer, group: LayerGroup, after: Followed) -> None:
        layer: Any = module
        attention, block = layer.self_attn, layer.mlp
        self._module: Any = module
        self._class_forward = type(module).forward
        self._attention: Any = attention
        self._native = native
        self.routed = routed = after.router is not None
        # What is still to be called after attention.
        self._block: nn.Module | None = None if after.stands_for else block
        self._experts: nn.Module | None = block.experts if routed else None
        self._experts_forward = None if self._experts is None else own(self._experts)
        self.layer_idx: int = attention.layer_idx
        self._hidden_shape = (1, attention.q_proj.in_features)
        self._head_shape = (1, attention.head_dim)
        self._strides = (attention.head_dim, 1)
        self.kept = (attention.k_proj.out_features // attention.head_dim, attention.head_dim)
        self.times: StageTimes | None = None
        norms = (layer.input_layernorm, attention.q_norm, attention.k_norm, layer.post_attention_layernorm)
        self.stands_for: tuple[nn.Module, ...] = (
            attention, *(getattr(attention, name) for name in LINEARS), *norms, *after.stands_for,
        )  # fmt: skip
        self._site: Site | None = _site_of(block.gate) if routed else None
        self._examined = Examined(self.stands_for, (module, attention, *after.parents), (*norms, *after.weighed))
        self._group, self._place = group, group.join(self)
        self.examine()

    @classmethod
    def of(cls, module: nn.Module, library: Library, group: LayerGroup) -> TokenLayer | None:
        """For a layer whose classes are known by their source, and whose shapes are served; None for others.

        Args:
            module: Any module.
            library: The native library.
            group: The layers of the same stack.
        """
        layer: Any = module
        attention: Any = getattr(module, "self_attn", None)
        if own(module) is not None or attention is None or own(attention) is not None:
            return None
        linears: list[Any] = [getattr(attention, name, None) for name in LINEARS]
        packed = [one.packed for one in linears if isinstance(one, QuantisedLinear) and one.bias is None]
        matrices = [one for one in packed if one is not None and one.least_rows > 1]
        if len(matrices) < len(LINEARS) or not known_layer(type(module), type(attention)):
            return None
        names = ("input_layernorm", "post_attention_layernorm")
        norms = [_norm_of(getattr(owner, name, None)) for owner, name in (
            (layer, names[0]), (attention, "q_norm"), (attention, "k_norm"), (layer, names[1]),
        )]  # fmt: skip
        found = [norm for norm in norms if norm is not None]
        if len(found) < len(norms) or getattr(attention, "sliding_window", None) is not None:
            return None
        after = followed_by(getattr(module, "mlp", None))
        parts = _parts(found, matrices, attention.scaling, after)
        if found[1].weight.shape[0] != attention.head_dim or not parts.served:
            return None
        return cls(module, NativeLayer(library, parts, group.states), group, after)

    @property
    def intact(self) -> bool:
        """Whether its submodules have the forwards that it stands for, and nothing else says otherwise."""
        usual = self._attention.config._attn_implementation == "sdpa" and not self._module.training
        return usual and self._examined.unchanged

    @property
    def takes_rows(self) -> bool:
        """Whether it computes the next tokens of several sequences, as things are now."""
        return self._token_experts is not None and self.intact and self.experts_intact

    def examine(self) -> None:
        """Takes the forwards that its submodules have now for those that it stands for."""
        self._examined.examine()
        self._experts_forwards = Seen(() if self._experts is None else (self._experts,))

    def __call__(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the class computes."""
        carried = None if args else _carried(kwargs)
        rows = hidden_states.shape[0]
        if (
            carried is None
            or hidden_states.shape[1:] != self._hidden_shape
            or (now := self._begun(hidden_states, carried)) is None
            or ((rooms := self._rooms(rows, carried, now)) is None and rows > 1)
        ):
            return self._class_forward(self._module, hidden_states, *args, **kwargs)
        native = self._native
        state = native.take(hidden_states, *carried[1], self.times)
        results = self._compute_beside(state, carried[0]) if rooms is None else native.compute(state, rooms)
        if rows > 1 and isinstance(carried[0], RowRooms):
            carried[0].copy_over_left(results)
        whole = None
        if self._experts is not None:
            if self._site is not None:
                self._site.called((results.normed,), {})
            token_experts = self._token_experts
            if token_experts is not None and self._place not in now.with_changed_experts:
                whole = token_experts.compute(state)
        native.release(state)
        if whole is not None:
            return whole
        adapter = self._adapter
        if rows > 1 and adapter is not None:
            added = adapter.forward(results.normed, results.ids, results.weights, rows=True)
            return results.residual + added[:, None]
        if self._experts is not None:
            return results.residual + self._experts(results.normed, results.ids, results.weights)
        return results.residual if self._block is None else results.residual + self._block(results.normed[None])

    def _rooms(self, rows: int, carried: _Carried, now: _Round) -> list[KeyValueRoom] | None:
        """Places in the cache, with one more for each sequence; None if it takes keys and values itself."""
        cache, _, mask = carried
        if isinstance(cache, RowRooms):
            return cache.places(self.layer_idx)
        length = None if mask is None else mask.shape[-1]
        rooms = extend(cache, self.layer_idx, rows, *self.kept, length=length)
        if rooms is None or mask is None or now.padding is None:
            return rooms
        width = self._head_shape[1]
        return [room.after(hidden, width) for room, hidden in zip(rooms, now.padding, strict=True)]

    def _compute_beside(self, state: TokenState, cache: Any) -> Results:
        """With a cache that takes key and value itself."""
        native = self._native
        begun = native.begin(state)
        keys, values = cache.update(begun.key, begun.value, self.layer_idx)
        if keys.dtype is not torch.bfloat16 or values.dtype is not torch.bfloat16:
            raise UsageError(
                f"Layer {self.layer_idx} of the cache has {keys.dtype} keys and {values.dtype} values; the model "
                "computes in torch.bfloat16.",
                advice="Give it a cache that this model has filled, outside autocast.",
            )
        if keys.stride()[2:] != self._strides or values.stride()[2:] != self._strides:
            keys, values = keys.contiguous(), values.contiguous()
        return native.finish(state, KeyValueRoom.of(keys, values))

    @functools.cached_property
    def _adapter(self) -> DecoratedExperts | None:
        """What computes the experts, if it is one that may compute them natively."""
        adapter = getattr(self._experts_forward, "__self__", None)
        return adapter if isinstance(adapter, DecoratedExperts) else None

    @functools.cached_property
    def _token_experts(self) -> TokenExperts | None:
        """Made with the first token, when the experts have their cache."""
        return None if self._adapter is None else self._adapter.token_experts

    @property
    def experts_intact(self) -> bool:
        """Whether the experts' module is as it was when it was examined."""
        experts: Any = self._experts
        return self._experts_forwards.unchanged and not (experts._forward_hooks or experts._forward_pre_hooks)

    def _begun(self, hidden: torch.Tensor, carried: _Carried) -> _Round | None:
        """The round, if these are tokens as others, and the layer what it was when it was examined."""
        _, (cosine, sine), mask = carried
        rows = hidden.shape[0]
        if (
            hidden.dtype is not torch.bfloat16
            or hidden.requires_grad
            or not hidden.is_contiguous()
            or not 1 <= rows <= MOST_ROWS
            or cosine.shape[1:] != self._head_shape
            or cosine.shape[0] not in (1, rows)
            or sine.shape != cosine.shape
            or cosine.dtype is not torch.bfloat16
            or not cosine.is_contiguous()
            or not sine.is_contiguous()
            or torch.is_autocast_enabled("cpu")
        ):
            return None
        now = self._group.begun(self._place, cosine)
        if now is None or (rows == 1 and mask is None):
            return now
        if rows == 1 or self._token_experts is None or self._place in now.with_changed_experts:
            return None
        return now if mask is None or len(now.padding_by(mask) or ()) == rows else None


def _carried(kwargs: dict[str, Any]) -> _Carried | None:
    """The cache, the rotary embedding and the mask that a layer is called with; None if it is given anything else.

    Neither is looked for by its name, which releases change; what changes nothing in the output is passed over.
    """
    cache: Any = None
    embeddings: tuple[torch.Tensor, torch.Tensor] | None = None
    mask: torch.Tensor | None = None
    for name, value in kwargs.items():
        if value is None or value is False or name in _IDLE:
            continue
        if embeddings is None and type(value) is tuple and len(value) == 2 and isinstance(value[0], torch.Tensor):
            embeddings = value
        elif cache is None and is_cache(value):
            cache = value
        elif mask is None and isinstance(value, torch.Tensor) and value.dtype is torch.bool and value.dim() == 4:
            mask = value
        else:
            return None
    return None if cache is None or embeddings is None else (cache, embeddings, mask)


def known_layer(layer: type[nn.Module], attention: type[nn.Module]) -> bool:
    """Whether a layer and its attention compute what is computed here, by their classes' source."""
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeAttention, Qwen3MoeDecoderLayer

    if not same_forward(layer, Qwen3MoeDecoderLayer):
        return False
    if same_forward(attention, Qwen3MoeAttention, helpers=_HELPERS):
        return True
    from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextAttention

    return same_forward(attention, Qwen3VLMoeTextAttention, helpers=_HELPERS)


def _norm_of(module: nn.Module | None) -> LayerNorm | None:
    forward = None if module is None else own(module)
    weight = None if module is None else module._parameters.get("weight")
    if weight is None or not isinstance(forward, NormForward):
        return None
    return LayerNorm(weight, forward.norm.lanes, forward.norm.form, forward.norm.epsilon)


def _site_of(gate: nn.Module) -> Site | None:
    forward = at(gate, "prediction")
    return forward.site if isinstance(forward, WatchedRouter) else None


def _parts(norms: list[LayerNorm], matrices: list[PackedMatrix], scale: float, followed: Followed) -> LayerParts:
    before, of_query, of_key, after = norms
    query, key, value, output = matrices
    return LayerParts(
        before, of_query, of_key, after, query, key, value, output, scale, followed.router, followed.block
    )
