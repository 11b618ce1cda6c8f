"""How far the codes of a code predictor in a scheme are from those of the same in bfloat16."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


def in_scheme(predictor: Any, scheme: str, *, native: bool = True) -> Any:
    """A copy whose linear layers have their weights in a scheme.

    Args:
        predictor: The code predictor in bfloat16.
        scheme: The scheme.
        native: Whether it is computed as Coterie does; else the class calls its layers, with bfloat16 between them.
    """
    from coterie.integration import install_native_layers, install_native_norms
    from coterie.kernels import QuantisedLinear
    from coterie.quant import SCHEMES, stored_linear

    made = copy.deepcopy(predictor)
    for name, module in list(made.named_modules()):
        if type(module) is nn.Linear:
            matrix = stored_linear(name, *module.weight.shape, SCHEMES[scheme])
            assert matrix is not None, "no row is shorter than a group"
            layer = QuantisedLinear(module, matrix)
            layer.fill(*matrix.quantise(module.weight.detach()))
            made.set_submodule(name, layer)
    if native:
        install_native_norms(made)
        install_native_layers(made)
    return made


class Divergence(NamedTuple):
    """Over all codes of some frames.

    Attributes:
        kld: Mean Kullback-Leibler divergence from the reference's distribution, in nats.
        same_top: Share of codes whose likeliest is the reference's.
        entropy: Mean entropy of the reference, in nats: what there is to be known.
        codes: How many there were.
    """

    kld: float
    same_top: float
    entropy: float
    codes: int


@torch.no_grad()
def logits_of(predictor: Any, embeddings: Tensor, codes: Tensor) -> Tensor:
    """Logits of all codes of a frame, the first of which are given, float32 [Q - 1, V].

    Args:
        predictor: The code predictor.
        embeddings: What the frame begins with, [1, 2, H].
        codes: The frame's further codes, int64 [1, Q - 1].
    """
    embeddings = embeddings.to(predictor.dtype)
    outputs = predictor(inputs_embeds=embeddings, use_cache=True)
    found = [outputs.logits[0, -1].float()]
    for step in range(1, codes.shape[1]):
        kept = {name: value for name, value in outputs.items() if hasattr(value, "get_seq_length")}
        outputs = predictor(input_ids=codes[:, step - 1 : step], generation_steps=step, use_cache=True, **kept)
        found.append(outputs.logits[0, -1].float())
    return torch.stack(found)


def divergence(reference: list[Tensor], other: list[Tensor]) -> Divergence:
    """Compares logits of the same frames."""
    ours, theirs = (torch.cat(one).double().log_softmax(-1) for one in (other, reference))
    kld = (theirs.exp() * (theirs - ours)).sum(-1)
    same = (theirs.argmax(-1) == ours.argmax(-1)).double()
    entropy = -(theirs.exp() * theirs).sum(-1)
    return Divergence(float(kld.mean()), float(same.mean()), float(entropy.mean()), len(kld))


def sampled(predictor: Any, embeddings: Tensor) -> Tensor:
    """A frame's further codes as the model draws them, int64 [1, Q - 1]."""
    codes: Tensor = predictor.generate(
        inputs_embeds=embeddings.to(predictor.dtype), max_new_tokens=predictor.config.num_code_groups - 1,
        do_sample=True, top_k=50, top_p=0.8, return_dict_in_generate=True, output_hidden_states=True,
    ).sequences  # fmt: skip
    return codes
