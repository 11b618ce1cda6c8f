"""The forward of a talker's code predictor that is one native call, where its linear layers are in a scheme.

A frame of speech takes as many passes through it as there are further codes, 15 in the released Qwen3-Omni, each over a
token or two and five layers. Its weights are read anew for each pass, and all else had better take no time.

It stands for the classes' own forwards as far as rounding goes, and rounds less: the residual, norms, rotations and
sums are float32.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from coterie.errors import UsageError
from coterie.hf.code_predictor import code_scores, is_code_predictor
from coterie.hf.rotary_lengths import goes_by_length
from coterie.integration.followed import gated_matrices, packed_of
from coterie.integration.token_layer import LINEARS, known_layer
from coterie.kernels.dense import NormForward
from coterie.native import DenseDecoder, DenseLayer, DenseNorm, DenseSequence, Library
from coterie.passes.forwards import Examined, covers_class, own

_IDLE = frozenset({"use_cache", "return_dict"})
"""Arguments that change nothing in what is computed here: there is always a cache."""
_FORMS = (0, 1)
"""Of a norm, those that differ in nothing but where they round to bfloat16."""
_BEGINS = 2
"""Tokens that a frame begins with: what the talker's last layer says, and the first code."""


class FrameCache:
    """The tokens of a frame that the predictor has seen.

    Args:
        sequence: They, and the memory to go on with.
    """

    def __init__(self, sequence: DenseSequence) -> None:
        self.sequence = sequence

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens, whatever the layer."""
        return self.sequence.length


class NativeCodePredictor:
    """A code predictor's forward: native for the passes of one frame after the other, else the class's own.

    Which it is, is decided with the first pass of a frame: its submodules have to be what they were when this was made,
    without hooks. A frame that began natively goes on so, with the cache that the first pass returned.

    Args:
        module: The code predictor, its linear layers' weights in a scheme.
        native: The native library.
    """

    def __init__(self, module: nn.Module, native: Library) -> None:
        predictor: Any = module
        self._module: Any = module
        self._class_forward = type(module).forward
        self._native = native
        model = predictor.model
        layers = list(model.layers)
        self._norms = [*(norm for layer in layers for norm in _norms(layer)), model.norm]
        inner = [one for one in (*model.layers.modules(), model.norm, *predictor.lm_head) if one is not model.layers]
        parents = (predictor, model, model.layers, predictor.lm_head, *(one for one in inner if one._modules))
        self._examined = Examined((model, *inner), parents, self._norms)
        self._config = model.config
        # Of the norms' weights, of which the decoder has copies.
        self._versions: list[int] | None = None

    @classmethod
    def of(cls, module: nn.Module, native: Library) -> NativeCodePredictor | None:
        """For a code predictor whose layers are known by their source, and whose shapes are served; None for others.

        Args:
            module: Any module.
            native: The native library.
        """
        if not is_code_predictor(module) or not covers_class(module, "native"):
            return None
        predictor: Any = module
        model = predictor.model
        layers, heads = list(model.layers), list(predictor.lm_head)
        if not layers or not heads or any(map(goes_by_length, model.modules())):
            return None
        known = [_layer(layer) for layer in layers]
        if not all(known) or not all(map(packed_of, heads)) or _norm(model.norm) is None:
            return None
        # One size, and one way to compute.
        return cls(module, native) if len({layer.shape for layer in known if layer}) == 1 else None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the class computes, and logits in float32."""
        given = {
            name: one for name, one in kwargs.items() if one is not None and one is not False and name not in _IDLE
        }
        cache = next((one for one in given.values() if isinstance(one, FrameCache)), None)
        if cache is not None:
            return self._go_on(cache, args, given)
        embeddings = given.get("inputs_embeds")
        plain = not args and len(given) == 1 and kwargs.get("use_cache")
        if embeddings is None or not plain or not self._begins(embeddings) or not self.intact:
            return self._class_forward(self._module, *args, **kwargs)
        return self._pass(FrameCache(self._decoder.begin()), embeddings, 0)

    @property
    def intact(self) -> bool:
        """Whether its submodules are what they were, and nothing else says that they are to be called."""
        usual = self._config._attn_implementation == "sdpa" and not self._module.training
        known = self._versions is None or self._versions == _versions_of(self._norms)
        return usual and known and self._examined.unchanged

    def _begins(self, embeddings: object) -> bool:
        """Whether this is what a frame begins with."""
        return (
            isinstance(embeddings, torch.Tensor)
            and embeddings.dim() == 3
            and embeddings.shape[:2] == (1, _BEGINS)
            and embeddings.dtype is torch.bfloat16
            and not embeddings.requires_grad
            and not torch.is_autocast_enabled("cpu")
        )

    def _go_on(self, cache: FrameCache, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        """A further pass of a frame.

        Raises:
            UsageError: If it is not the next one.
        """
        rest = {name: one for name, one in given.items() if one is not cache}
        step, ids = rest.pop("generation_steps", None), rest.pop("input_ids", None)
        if args or rest or not isinstance(step, int) or step != cache.sequence.length - _BEGINS + 1 or ids is None:
            raise UsageError(
                "A frame of which the code predictor has computed a part natively goes on with its next code: "
                f"input_ids [1, 1] and generation_steps={cache.sequence.length - _BEGINS + 1}, and nothing else.",
                advice="Begin the frame again.",
                got=sorted(rest),
            )
        embeddings = self._module.get_input_embeddings()[step - 1](ids)
        return self._pass(cache, embeddings, step)

    def _pass(self, cache: FrameCache, embeddings: torch.Tensor, step: int) -> Any:
        logits = self._decoder(cache.sequence, embeddings[0].contiguous(), step)
        return code_scores(logits[None, None], cache, step + 1)

    @functools.cached_property
    def _decoder(self) -> DenseDecoder:
        """Made with the first frame, when everything is in memory."""
        predictor = self._module
        model = predictor.model
        heads = [packed_of(head) for head in predictor.lm_head]
        layers, last = [_layer(layer) for layer in model.layers], _norm(model.norm)
        if last is None or not all(heads) or not all(layers):
            raise AssertionError("it was examined, and has not changed since")
        self._versions = _versions_of(self._norms)
        positions = torch.arange(_BEGINS + len(heads) - 1)[None]
        # By the class's own, in float32.
        cosine, sine = model.rotary_emb(torch.zeros(1, dtype=torch.float32), positions)
        return DenseDecoder(
            self._native,
            [layer for layer in layers if layer is not None],
            last,
            [head for head in heads if head is not None],
            cosine=cosine[0],
            sine=sine[0],
            scale=model.layers[0].self_attn.scaling,
        )


def _versions_of(norms: list[nn.Module]) -> list[int]:
    weights = [norm._parameters.get("weight") for norm in norms]
    return [-1 if one is None or one.is_inference() else one._version for one in weights]


def _norms(layer: Any) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    attention = layer.self_attn
    return layer.input_layernorm, attention.q_norm, attention.k_norm, layer.post_attention_layernorm


def _layer(layer: Any) -> DenseLayer | None:
    """What a layer computes with, if its classes compute what is computed here."""
    attention, block = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    if attention is None or block is None or not known_layer(type(layer), type(attention)):
        return None
    gated = gated_matrices(block)
    if gated is None or getattr(attention, "sliding_window", None) is not None:
        return None
    norms = [one for one in map(_norm, _norms(layer)) if one is not None]
    linears = [one for one in (packed_of(getattr(attention, name)) for name in LINEARS) if one is not None]
    if len(norms) < len(_norms(layer)) or len(linears) < len(LINEARS):
        return None
    (before, of_query, of_key, after), (query, key, value, output) = norms, linears
    found = DenseLayer(before, of_query, of_key, after, query, key, value, output, *gated)
    return found if found.served else None


def _norm(module: nn.Module) -> DenseNorm | None:
    forward, weight = own(module), module._parameters.get("weight")
    if weight is None or not isinstance(forward, NormForward):
        return None
    return DenseNorm(weight, forward.norm.epsilon) if forward.norm.form in _FORMS else None
