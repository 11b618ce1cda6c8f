"""The parts of a model outside its experts: the one table of them, with what may be done to the weights of each.

Which module belongs to which part is decided by the model's structure, in :mod:`coterie.hf.dense_parts`. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from coterie.spec.encodings import NATIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class DensePart:
    """A part of a model, apart from its experts.

    Attributes:
        name: As users and manifests write it.
        holds: What belongs to it.
        kept: Why its weights always keep the checkpoint's bits; None if its linear layers may be in a scheme.
        in_rest: Whether one scheme that is given for all parts is for this one too. If not, it has to be named.
        speaking: Its scheme in a model that speaks and whose experts are stored in a lossy scheme, if nobody says
            otherwise.
        cautions: Schemes that are known to do harm here, each with what is known.
    """

    name: str
    holds: str
    kept: str | None = None
    in_rest: bool = True
    speaking: str = NATIVE
    cautions: Mapping[str, str] = field(default_factory=dict)


_TABLE = (
    DensePart(
        name="attention",
        holds="projections of attention, and of other layers that mix tokens, such as Mamba and linear attention",
        speaking="int8",
    ),
    DensePart(
        name="shared_experts",
        holds="what a layer with experts computes for every token beside them: shared experts, a parallel dense MLP",
        speaking="int8",
    ),
    DensePart(
        name="mlp",
        holds="dense MLPs of layers without experts, and other linear layers between attention and experts",
        speaking="int8",
    ),
    DensePart(name="head", holds="the output head of the language model", speaking="int8"),
    DensePart(name="encoders", holds="audio and vision encoders, with the projections behind them"),
    DensePart(
        name="talker",
        holds="what writes the first code of each frame of speech: attention, shared experts, projections and head",
        speaking="int8",
    ),
    DensePart(
        name="predictor",
        holds="the code predictor, which writes the further codes of a frame",
        in_rest=False,
        speaking="int8",
        cautions={
            "int4": "four bits there are known to degrade long speech (github.com/Blaizzy/mlx-vlm/pull/598); int8 is "
            "the smallest scheme of which nothing bad is known"
        },
    ),
    DensePart(
        name="vocoder",
        holds="code2wav, which makes sound of codes",
        kept="most of it is convolutions, and it is small",
    ),
    DensePart(name="embeddings", holds="tokens' embeddings", kept="their rows are looked up, not multiplied"),
    DensePart(name="routers", holds="routers and gates", kept="they decide which experts compute"),
    DensePart(name="norms", holds="normalisations and other parameters of no linear layer", kept="they are small"),
)

DENSE_PARTS: Mapping[str, DensePart] = {part.name: part for part in _TABLE}
"""The parts by name, in the order in which they are shown."""

SCHEMED_PARTS = tuple(name for name, part in DENSE_PARTS.items() if part.kept is None)
"""Parts whose linear layers may be in a scheme."""
