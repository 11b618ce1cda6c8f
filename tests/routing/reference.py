"""What each class chooses and weighs, in float64 and plain loops, written from the classes' papers and sources."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

Score = Literal["softmax", "sigmoid", "sqrtsoftplus", "logits", "given"]
Weight = Literal["score", "renormalised", "softmax", "sigmoid of logits", "with shared"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How a class routes.

    Attributes:
        score: Of an expert, from its logit; ``given`` if the class returns scores as its first output.
        bias: Name of what is added to scores for the choice only: an attribute or an argument of the forward.
        groups: What scores a group of experts, if groups are chosen first.
        weight: Of a chosen expert.
        scale: Attribute that all weights are multiplied with.
        epsilon: What is added to the sum that weights are divided by, where it can be seen.
    """

    score: Score
    bias: str | None = None
    groups: Literal["best", "best two"] | None = None
    weight: Weight = "score"
    scale: str | None = None
    epsilon: float = 0.0


_SOFTMAX = Rule(score="softmax")
_RENORMALISED = Rule(score="softmax", weight="renormalised")
_TOP_K_SOFTMAX = Rule(score="logits", weight="softmax")
_CORRECTED = Rule(
    score="sigmoid",
    bias="e_score_correction_bias",
    groups="best two",
    weight="renormalised",
    scale="routed_scaling_factor",
)
_UNGROUPED = Rule(score="sigmoid", bias="e_score_correction_bias", weight="renormalised")
_GREEDY_GROUPS = Rule(score="softmax", groups="best", scale="routed_scaling_factor")
_GREEDY = Rule(score="softmax", scale="routed_scaling_factor")


def _scaled(rule: Rule, scale: str, **changes: str) -> Rule:
    return Rule(score=rule.score, bias=changes.get("bias", rule.bias), weight=rule.weight, scale=scale)


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "FlexOlmoTopKRouter",
            "JambaTopKRouter",
            "MellumTopKRouter",
            "OlmoeTopKRouter",
            "Qwen2MoeTopKRouter",
            "Qwen3MoeTopKRouter",
            "Qwen3NextTopKRouter",
            "Qwen3OmniMoeTalkerTextTopKRouter",
            "Qwen3OmniMoeThinkerTextTopKRouter",
            "Qwen4ExpTextTopKRouter",
        ),
        _SOFTMAX,
    ),
    **dict.fromkeys(
        (
            "HunYuanMoEV1Gate",
            "MiniMaxTopKRouter",
            "MixtralTopKRouter",
            "Qwen3OmniMoeTextTopKRouter",
            "Qwen3VLMoeTextTopKRouter",
            "Qwen3_5MoeTopKRouter",
            "LaraMiniTopKRouter",
        ),
        _RENORMALISED,
    ),
    **dict.fromkeys(
        ("DiffusionGemmaTextRouter", "Gemma4TextRouter"),
        Rule(score="given", weight="renormalised", scale="per_expert_scale"),
    ),
    **dict.fromkeys(
        (
            "AriaTextTopKRouter",
            "GptOssTopKRouter",
            "GraniteMoeHybridTopKRouter",
            "GraniteMoeSWATopKRouter",
            "GraniteMoeSharedTopKRouter",
            "GraniteMoeTopKRouter",
            "OpenAIPrivacyFilterTopKRouter",
        ),
        _TOP_K_SOFTMAX,
    ),
    "Cohere2MoeTopKRouter": _TOP_K_SOFTMAX,
    "FlintTopKRouter": Rule(score="sigmoid", weight="renormalised"),
    **dict.fromkeys(
        (
            "AXK1TopkRouter",
            "AXK2TopkRouter",
            "BailingHybridTopkRouter",
            "DeepseekV32TopkRouter",
            "DeepseekV3TopkRouter",
            "Dots1TopkRouter",
            "Dots3NoteTextTopkRouter",
            "ExaoneMoeTopkRouter",
            "Glm4MoeLiteTopkRouter",
            "Glm4MoeTopkRouter",
            "Glm4vMoeTextTopkRouter",
            "Glm5NextTextTopkRouter",
            "GlmMoeDsaTopkRouter",
            "HYV4TopkRouter",
            "HYV4VLTopkRouter",
            "KimiLinearTopkRouter",
            "MiMoV2FlashTopkRouter",
            "NemotronHTopkRouter",
            "SolarOpenTopkRouter",
        ),
        _CORRECTED,
    ),
    "BeamTopKRouter": Rule(score="sigmoid", bias="e_score_correction_bias", groups="best two", weight="renormalised"),
    "AfmoeTokenChoiceRouter": _scaled(_UNGROUPED, "route_scale", bias="expert_bias"),
    "HYV3TopKRouter": _scaled(_UNGROUPED, "router_scaling_factor"),
    "Dots3NoteVisionTopKRouter": _scaled(_UNGROUPED, "router_scaling_factor"),
    "Inkling2LoopTopKRouter": _scaled(_UNGROUPED, "routed_scaling_factor"),
    "Inkling2TopKRouter": _scaled(_UNGROUPED, "routed_scaling_factor"),
    "MuseSparkTopkRouter": _scaled(_UNGROUPED, "routed_scaling_factor"),
    "Lfm2MoeTopKRouter": Rule(
        score="sigmoid", bias="expert_bias", weight="renormalised", scale="routed_scaling_factor", epsilon=1e-6
    ),
    "LagunaTopKRouter": _UNGROUPED,
    "MiniMaxM2TopKRouter": _UNGROUPED,
    "MiniMaxM3VLTopKRouter": _UNGROUPED,
    "Step3p7TopKRouter": _UNGROUPED,
    "DeepseekV4TopKRouter": Rule(
        score="sqrtsoftplus", bias="e_score_correction_bias", weight="renormalised", scale="routed_scaling_factor"
    ),
    "InklingTopkRouter": Rule(score="sigmoid", bias="e_score_correction_bias", weight="with shared"),
    "Kolibri1TopKRouter": Rule(score="logits", bias="e_score_correction_bias", weight="sigmoid of logits"),
    "Ernie4_5_MoeTopKRouter": Rule(score="softmax", bias="moe_statics", weight="renormalised"),
    "Ernie4_5_VLMoeMoeTopKRouter": Rule(score="softmax", bias="moe_statics", weight="renormalised"),
    "LongcatFlashTopkRouter": Rule(score="softmax", bias="e_score_correction_bias", scale="routed_scaling_factor"),
    "ZayaRouter": Rule(score="softmax", bias="balancing_biases"),
    "DeepseekV2TopkRouter": _GREEDY_GROUPS,
    "DeepseekOcr2TextTopkRouter": _GREEDY,
    "UnlimitedOcrTextTopkRouter": _GREEDY,
    "Mistral4TopkRouter": Rule(
        score="softmax", groups="best two", weight="renormalised", scale="routed_scaling_factor"
    ),
    "MistralLarge4TextTopkRouter": Rule(
        score="softmax", groups="best two", weight="renormalised", scale="routed_scaling_factor"
    ),
}


def route(
    router: nn.Module, arguments: dict[str, torch.Tensor], first: torch.Tensor, present: list[int], k: int
) -> list[dict[int, float]]:
    """Expert → weight for each token, of the best k of those present.

    Args:
        router: A stock router.
        arguments: What it was given.
        first: Its first output, logits or scores [T, E].
        present: Who may be chosen.
        k: How many are.
    """
    rule = RULES[type(router).__name__]
    bias = _bias(router, rule, arguments, first.shape[-1])
    renormalises = getattr(router, "norm_topk_prob", rule.weight == "renormalised")
    chosen = []
    for token, row in enumerate(first.reshape(-1, first.shape[-1]).double().tolist()):
        scores = _scores(rule.score, row)
        order = [scores[e] + bias[e] for e in range(len(row))]
        best = _best(rule, router, order, present)[:k]
        if rule.weight in ("score", "renormalised"):
            weights = [scores[e] for e in best]
            if renormalises:
                weights = [w / (sum(weights) + rule.epsilon) for w in weights]
        elif rule.weight == "softmax":
            exponentials = [math.exp(row[e] - max(row)) for e in best]
            weights = [x / sum(exponentials) for x in exponentials]
            if type(router).__name__ == "OpenAIPrivacyFilterTopKRouter":
                weights = [w / router.top_k for w in weights]
        elif rule.weight == "sigmoid of logits":
            weights = [_sigmoid(row[e]) for e in best]
            if renormalises:
                weights = [w / sum(weights) for w in weights]
        else:
            weights = _beside_shared(router, arguments, token, [row[e] for e in best])
        scale = _value(getattr(router, rule.scale)) if rule.scale else 1.0
        chosen.append(
            {
                e: w * float(scale[e] if isinstance(scale, torch.Tensor) else scale)
                for e, w in zip(best, weights, strict=True)
            }
        )
    return chosen


def _value(scale: float | torch.Tensor) -> float | torch.Tensor:
    return scale.detach() if isinstance(scale, torch.Tensor) else scale


def _best(rule: Rule, router: nn.Module, order: list[float], present: list[int]) -> list[int]:
    """Who is present, best first; those in the best groups before all others."""
    ranked = sorted(present, key=lambda e: -order[e])
    count = getattr(router, "num_group", None)
    if rule.groups is None or count is None:
        return ranked
    size = len(order) // count
    by_group = {g: [order[e] for e in ranked if e // size == g] for g in {e // size for e in ranked}}
    value = {g: (v[0] if rule.groups == "best" else sum(v[:2])) for g, v in by_group.items()}
    picked = sorted(value, key=lambda g: -value[g])[: router.topk_group]
    return [e for e in ranked if e // size in picked] + [e for e in ranked if e // size not in picked]


def _scores(score: Score, row: list[float]) -> list[float]:
    if score == "softmax":
        exponentials = [math.exp(x - max(row)) for x in row]
        return [x / sum(exponentials) for x in exponentials]
    if score == "sigmoid":
        return [_sigmoid(x) for x in row]
    if score == "sqrtsoftplus":
        return [math.sqrt(math.log1p(math.exp(x))) for x in row]
    return row


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _bias(router: nn.Module, rule: Rule, arguments: dict[str, torch.Tensor], width: int) -> list[float]:
    if rule.bias is None:
        return [0.0] * width
    value = arguments[rule.bias] if rule.bias in arguments else getattr(router, rule.bias)
    if isinstance(value, nn.Module):
        value = value.e_score_correction_bias
    return [float(x) for x in value.flatten()]


def _beside_shared(
    router: nn.Module, arguments: dict[str, torch.Tensor], token: int, logits: list[float]
) -> list[float]:
    """Inkling: log-sigmoids of the chosen and of the shared experts, exponentiated and divided by their sum."""
    hidden = arguments["hidden_states"].reshape(-1, router.hidden_dim)[token].double()
    shared = (router.weight[-router.n_shared_experts :].double() @ hidden).tolist()
    scale = float(router.route_scale * router.global_scale.detach())
    total = sum(_sigmoid(x) for x in logits + shared)
    return [_sigmoid(x) / total * scale for x in logits]
