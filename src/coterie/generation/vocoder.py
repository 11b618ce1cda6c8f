"""Sound from a talker's codes while they come: the vocoder of Qwen3-Omni, some frames at a time.

Everything in it is causal. Its transformer looks back over a window of frames, its convolutions over a few samples of
their own rate, and a transposed convolution over one frame. So what each has seen is kept, and a chunk of frames gives
just the samples that a decode of all frames would have in that place, but for the rounding of sums whose length
differs. Transformers' own ``chunked_decode`` keeps nothing, decodes 25 frames again before each chunk of 300, and
leaves some samples out where two chunks meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from coterie.hf.caches import is_cache
from coterie.passes.forwards import install, remove


class Vocoder:
    """Decodes one answer's frames as they come.

    Not for two threads at once, and nobody else decodes with the module during a call.

    Args:
        code2wav: The model's vocoder, a ``Qwen3OmniMoeCode2Wav``.
    """

    def __init__(self, code2wav: nn.Module) -> None:
        self._code2wav: Any = code2wav
        self._cache: dict[str, Any] = {}
        self._frames = 0
        self._convolutions: dict[nn.Module, Callable[[Tensor], Tensor]] = {}
        for module in code2wav.modules():
            inner = getattr(module, "conv", None)
            if isinstance(inner, nn.ConvTranspose1d):
                self._convolutions[module] = _Transposed(inner)
            elif isinstance(inner, nn.Conv1d):
                self._convolutions[module] = _Causal(inner)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """The samples of the next frames.

        Args:
            codes: int64 [Q, F], a frame in each column; F is 1 or more.

        Returns:
            float32 [samples] in [-1, 1]. Of the very first frame there are fewer than of others, or none at all.
        """
        model = self._code2wav
        hidden = model.code_embedding(codes[None] + model.code_offset).mean(1)
        outputs = model.pre_transformer(
            inputs_embeds=hidden,
            position_ids=torch.arange(self._frames, self._frames + codes.shape[1])[None],
            use_cache=True,
            **self._cache,
        )
        self._cache = {name: value for name, value in outputs.items() if is_cache(value)}
        self._frames += codes.shape[1]
        samples = outputs.last_hidden_state.transpose(1, 2)
        with self._remembering():
            for block in [*(block for blocks in model.upsample for block in blocks), *model.decoder]:
                samples = block(samples)
                if not samples.shape[-1]:
                    return torch.zeros(0)  # what comes after has seen nothing yet
        made: Tensor = samples.clamp(min=-1, max=1).reshape(-1).float()
        return made

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        """Inside, the convolutions go on where they were; all around them is the class's own."""
        try:
            for module, convolution in self._convolutions.items():
                install(module, "native", convolution)
            yield
        finally:
            for module in self._convolutions:
                remove(module, "native")


class _Causal:
    """A convolution over what came before, which begins with zeros."""

    def __init__(self, convolution: nn.Conv1d) -> None:
        self._convolution = convolution
        self._before = (convolution.kernel_size[0] - 1) * convolution.dilation[0]
        self._seen: Tensor | None = None

    def __call__(self, values: Tensor) -> Tensor:
        if self._seen is None:
            self._seen = values.new_zeros(*values.shape[:-1], self._before)
        known = torch.cat([self._seen, values], dim=-1)
        self._seen = known[..., known.shape[-1] - self._before :].clone()
        result: Tensor = self._convolution(known)
        return result


class _Transposed:
    """A transposed convolution, each output of which goes by an input and those before; the first ones are cut off."""

    def __init__(self, convolution: nn.ConvTranspose1d) -> None:
        self._convolution = convolution
        self._cut = convolution.kernel_size[0] - convolution.stride[0]
        self._stride = convolution.stride[0]
        self._before = -(-convolution.kernel_size[0] // self._stride) - 1
        self._seen: Tensor | None = None

    def __call__(self, values: Tensor) -> Tensor:
        known = values if self._seen is None else torch.cat([self._seen, values], dim=-1)
        old = known.shape[-1] - values.shape[-1]
        self._seen = known[..., max(0, known.shape[-1] - self._before) :].clone()
        made: Tensor = self._convolution(known)
        made = made[..., old * self._stride : known.shape[-1] * self._stride]
        cut = min(self._cut, made.shape[-1])
        self._cut -= cut
        return made[..., cut:].contiguous()
