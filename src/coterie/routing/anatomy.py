"""How a router makes its choice, found by running it once on a few zeros.

transformers has about eighty classes that route. They differ in how scores are formed and weights are made of them, and
hardly in how experts are chosen: the last top-k of the forward is the choice. Whether a class is one of those is not
read off its name: its forward is run on a small copy and its steps are looked at. A class of a later release that
chooses in another way is then refused, instead of being computed wrongly.
"""

from __future__ import annotations

from dataclasses import dataclass

from coterie.routing.steps import Step

_SCORES = {
    ("softmax",): "softmax",
    ("sigmoid",): "sigmoid",
    ("softplus", "sqrt"): "square root of softplus",
    ("softplus",): "softplus",
    ("relu",): "ReLU",
    ("tanh", "sigmoid"): "sigmoid of capped logits",
    (): "logits",
}
_CHANGES_SCORES = frozenset(
    {"softmax", "sigmoid", "softplus", "sqrt", "relu", "tanh", "exp", "logsigmoid", "log", "log_softmax"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """How one router makes its choice.

    Attributes:
        family: In words, such as ``sigmoid + bias in the best groups, top-k, renormalised``.
        width: How many it chooses from: the experts, and for some classes choices without an expert.
        top_k: K.
        topk_calls: The top-k calls of a forward; the last one is the choice.
        groups: Groups that experts are divided into, or 0.
        renormalises: Whether chosen softmax probabilities are divided by their sum, and no bias stands between the
            softmax and the choice. Then the softmax may run over the available experts.
    """

    family: str
    width: int
    top_k: int
    topk_calls: int
    groups: int
    renormalises: bool

    @property
    def grouped(self) -> bool:
        """Whether groups are chosen first."""
        return self.groups > 0


def anatomy_of(steps: list[Step]) -> Anatomy | str:
    """Reads the choice off a router's steps.

    Args:
        steps: Of one forward, on tokens fewer than any other size.

    Returns:
        The anatomy, or why the router is none of those that can be adapted, as the end of a sentence on its class.
    """
    topks = [i for i, step in enumerate(steps) if step.name == "topk"]
    if not topks:
        return "chooses experts without a top-k"
    last = topks[-1]
    shape, top_k = steps[last].shape, steps[last].k
    assert shape is not None
    assert top_k is not None
    width = shape[-1]
    groups = 0
    if len(topks) > 1 or _best_of_groups(steps[:last]):
        found = _groups(steps[:last], [steps[i] for i in topks[:-1]], width)
        if found is None:
            return "has several top-k calls that are not those of a choice within groups"
        groups = found
    scores, biased = _scores(steps[:last], width)
    if scores is None:
        return "forms its scores in a way that is not known"
    after = [step.name for step in steps[last + 1 :]]
    # Sums over anything but the chosen experts of a token count something else, such as the tokens of an expert.
    summed = any(s.name == "norm" or (s.name == "sum" and "dim=-1" in s.arguments) for s in steps[last + 1 :])
    renormalised = summed and "div" in after
    words = scores + (" + bias" if biased else "") + (" in the best groups" if groups else "") + ", top-k"
    words += next((f", {name}" for name in ("softmax", "sigmoid", "logsumexp") if name in after), "")
    return Anatomy(
        family=(words + (", renormalised" if renormalised else "")).replace("logsumexp", "log-sum-exp"),
        width=width,
        top_k=top_k,
        topk_calls=len(topks),
        groups=groups,
        renormalises=renormalised and not biased and scores == "softmax",
    )


def _best_of_groups(before: list[Step]) -> bool:
    return any(step.name == "max" and step.shape is not None and len(step.shape) == 3 for step in before)


def _groups(before: list[Step], topks: list[Step], width: int) -> int | None:
    """How many groups there are if these steps pick groups: best of each group [T, G, E/G], then the best [T, G]."""
    best = [s for s in before if s.name in ("topk", "max") and s.shape is not None and len(s.shape) == 3]
    picked = [s for s in topks if s.shape is not None and len(s.shape) == 2]
    if len(best) != 1 or len(picked) != 1 or len(best) + len(picked) != len(topks) + (best[0].name == "max"):
        return None
    (_, groups, size), (_, picked_from) = best[0].shape or (0, 0, 0), picked[0].shape or (0, 0)
    if groups != picked_from or groups * size != width or (best[0].name == "topk" and best[0].k != 2):
        return None
    return groups


def _scores(before: list[Step], width: int) -> tuple[str | None, bool]:
    """What is done to the logits, and whether something is added to the scores before the choice."""
    whole = [step for step in before if step.shape is not None and step.shape[-1] >= width]
    logits = max((i for i, step in enumerate(before) if step.name in ("linear", "mm", "matmul")), default=-1)
    names = [step.name for step in before[logits + 1 :] if step in whole]
    changes = tuple(name for name in names if name in _CHANGES_SCORES)
    last_change = max((i for i, name in enumerate(names) if name in _CHANGES_SCORES), default=-1)
    return _SCORES.get(changes), "add" in names[last_change + 1 :]
