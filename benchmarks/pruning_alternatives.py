"""Two things that others do instead of pruning or after it, to compare with: merging experts, and training routers.

Both change a checkpoint that was pruned and exported. Coterie offers neither; ``bench_pruning.py`` says what they give.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from coterie import export, prune
from coterie.checkpoint import Checkpoint
from coterie.origins.selection import Selection
from coterie.profiles import Usage

STEPS = 60
WINDOWS = 2
"""Of a step, each of one text."""
RATE = 1e-3
_WEIGHTS = "model.safetensors"


def merged(source: str, folder: Path, *, keep: str, profile: Path) -> Path:
    """Merges experts as M-SMoE does (Li and others, "Merge, Then Compress", 2024); returns the checkpoint.

    In each layer the most used experts stay. Each of the others joins the one of these whose router row is most like
    its own. Its hidden units are brought into the order of that expert's, by the assignment that makes the sum of their
    weights' products largest; then weights are averaged by use. The router keeps the rows of the experts that stayed,
    so that every engine can run the result.

    Args:
        source: The model, in one float dtype.
        folder: Where to work.
        keep: As :func:`coterie.prune` takes it.
        profile: Of the model.
    """
    small, checkpoint = folder / "by-use", folder / "merged"
    prune(source, small, keep=keep, by="frequency", profile=profile, modalities=["text"])
    export(small, checkpoint)
    original = Checkpoint.open(source)
    usage = Usage.open(profile, original.identity)
    selection = Selection.read(checkpoint)
    assert selection is not None, "it was pruned"
    weights = load_file(checkpoint / _WEIGHTS)
    for key, bank in selection.banks.items():
        layer = f"model.layers.{key.layer}.mlp"
        use = usage.banks[key].activations.sum(axis=0).astype(float) + 1
        rows = torch.nn.functional.normalize(original.read(f"{layer}.gate.weight").float(), dim=1)
        stays = torch.tensor(bank.experts)
        joined: dict[int, list[int]] = {expert: [expert] for expert in bank.experts}
        for expert in sorted(set(range(bank.before)) - set(bank.experts)):
            joined[int(stays[(rows[stays] @ rows[expert]).argmax()])].append(expert)
        for number, expert in enumerate(bank.experts):
            experts = [_matrices(original, f"{layer}.experts.{one}") for one in joined[expert]]
            shares = [use[one] for one in joined[expert]]
            for name, value in _average(experts, shares).items():
                place = f"{layer}.experts.{number}.{name}.weight"
                weights[place] = value.to(weights[place].dtype)
    return _written(checkpoint, weights)


def _matrices(source: Checkpoint, expert: str) -> dict[str, Tensor]:
    names = ("gate_proj", "up_proj", "down_proj")
    return {name: source.read(f"{expert}.{name}.weight").float() for name in names}


def _average(experts: Sequence[Mapping[str, Tensor]], shares: Sequence[float]) -> dict[str, Tensor]:
    """The mean of experts, each in the order of hidden units of the first."""
    total = {name: value * shares[0] for name, value in experts[0].items()}
    first = _units(experts[0])
    for expert, share in zip(experts[1:], shares[1:], strict=True):
        likeness = first @ _units(expert).T
        order = torch.as_tensor(linear_sum_assignment(-likeness.numpy())[1])
        for name, value in expert.items():
            total[name] += share * value.index_select(1 if name == "down_proj" else 0, order)
    return {name: value / sum(shares) for name, value in total.items()}


def _units(expert: Mapping[str, Tensor]) -> Tensor:
    """[F, 3 D] all weights of each hidden unit."""
    return torch.cat([expert["gate_proj"], expert["up_proj"], expert["down_proj"].T], dim=1)


def with_trained_routers(
    full: Path, pruned: Path, checkpoint: Path, texts: Sequence[Tensor], *, window: int, steps: int = STEPS
) -> tuple[Path, list[float]]:
    """Trains the routers of a pruned checkpoint towards the full model's logits, and nothing else of it.

    Args:
        full: The full model's checkpoint.
        pruned: The pruned model's; of one file of weights.
        checkpoint: Where the trained one goes.
        texts: Ids of the texts to train on [N]; other text than is scored.
        window: Tokens that the models see at once.
        steps: Steps of Adam, whose rate falls to 0 along a quarter of a cosine.

    Returns:
        The checkpoint, and the mean divergence of each step's tokens, before the step.
    """
    teacher, student = (_opened(path) for path in (full, pruned))
    routers = {name: one for name, one in student.named_parameters() if name.endswith(".mlp.gate.weight")}
    for router in routers.values():
        router.requires_grad_(True)
    optimiser = torch.optim.Adam(routers.values(), lr=RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: math.cos(math.pi / 2 * step / steps))
    divergences = []
    for step in range(steps):
        optimiser.zero_grad()
        found = []
        for number in range(step * WINDOWS, (step + 1) * WINDOWS):
            text = texts[number % len(texts)]
            start = number // len(texts) * window % (len(text) - window)
            ids = text[None, start : start + window]
            with torch.no_grad():
                want = teacher(input_ids=ids, use_cache=False).logits.log_softmax(-1)
            got = student(input_ids=ids, use_cache=False).logits.log_softmax(-1)
            loss = torch.nn.functional.kl_div(got, want, log_target=True, reduction="none").sum(-1).mean()
            (loss / WINDOWS).backward()
            found.append(loss.item())
        optimiser.step()
        schedule.step()
        divergences.append(sum(found) / WINDOWS)
    weights = load_file(pruned / _WEIGHTS)
    for name, router in routers.items():
        place = f"model.{name[name.index('layers.') :]}"  # the checkpoint's name of it
        weights[place] = router.detach().to(weights[place].dtype)
    shutil.copytree(pruned, checkpoint)
    return _written(checkpoint, weights), divergences


def _opened(checkpoint: Path) -> torch.nn.Module:
    cls = getattr(transformers, transformers.AutoConfig.from_pretrained(checkpoint).architectures[0])
    model: torch.nn.Module = cls.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True)
    return model.eval().requires_grad_(False)


def _written(checkpoint: Path, weights: dict[str, Tensor]) -> Path:
    save_file(weights, checkpoint / _WEIGHTS, {"format": "pt"})
    (checkpoint / "SHA256SUMS").unlink()  # of the weights before
    return checkpoint
