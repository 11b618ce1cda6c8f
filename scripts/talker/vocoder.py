"""code2wav: from codes to sound, trained on the spectra of the recordings at four resolutions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Qwen3OmniMoeConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeCode2Wav

from talker.codes import Codes
from talker.synthesis import FRAME, Samples
from talker.training import Plan, train

BATCH = 4
PLAN = Plan(steps=1500, rate=2e-3, least=0.03, betas=(0.8, 0.99), seed=1)

_RESOLUTIONS = (256, 512, 1024, 2048)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A word in one of the model's voices.

    Attributes:
        word: The word.
        voice: Name of the voice.
        samples: float32 [frames × :data:`FRAME`].
        codes: int64 [frames, groups].
    """

    word: str
    voice: str
    samples: Samples
    codes: Codes


def trained_vocoder(config: Qwen3OmniMoeConfig, recordings: Sequence[Recording], path: Path) -> nn.Module:
    """The vocoder, trained to the end of :data:`PLAN`; ``path`` keeps its state."""
    torch.manual_seed(PLAN.seed)
    model = Qwen3OmniMoeCode2Wav(config.code2wav_config)
    _initialise(model)
    windows = {size: torch.hann_window(size) for size in _RESOLUTIONS}

    def loss(step: int, choice: random.Random) -> Tensor:
        del choice
        codes, target, mask = _batch(recordings, step)
        made = model(codes)[:, 0]
        length = made.shape[-1]
        return _distance(made * mask[:, :length], target[:, :length], windows)

    train(model, loss, PLAN, path)
    return model


def _initialise(model: nn.Module) -> None:
    """The class's own weights at the start are meant for released ones; convolutions need larger ones."""
    for name, value in model.named_parameters():
        if "gamma" in name:
            nn.init.constant_(value, 0.1)
        elif "embedding" in name:
            nn.init.normal_(value)
        elif value.dim() >= 2:
            nn.init.kaiming_uniform_(value, a=5**0.5)


def _batch(recordings: Sequence[Recording], step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [B, groups, frames], samples [B, frames × FRAME] and where there are any; each recording once an epoch."""
    epoch, number = divmod(step, len(recordings) // BATCH)
    choice = random.Random(f"{PLAN.seed} epoch {epoch}")
    # Those of about the same length together: less is padding.
    order = sorted(recordings, key=lambda one: len(one.codes) + 3 * choice.random())
    starts = list(range(0, len(order), BATCH))
    choice.shuffle(starts)
    chosen = order[starts[number] : starts[number] + BATCH]
    frames = max(len(one.codes) for one in chosen)
    codes = torch.zeros(len(chosen), chosen[0].codes.shape[1], frames, dtype=torch.long)
    target, mask = torch.zeros(2, len(chosen), frames * FRAME)
    for row, one in enumerate(chosen):
        codes[row, :, : len(one.codes)] = torch.from_numpy(one.codes.T.copy())
        target[row, : len(one.samples)] = torch.from_numpy(one.samples)
        mask[row, : len(one.samples)] = 1
    return codes, target, mask


def _distance(made: Tensor, target: Tensor, windows: dict[int, Tensor]) -> Tensor:
    """Spectral convergence and log magnitude (Yamamoto et al., Parallel WaveGAN, 2020), and the samples themselves."""
    total = 2 * nn.functional.l1_loss(made, target)
    for size, window in windows.items():
        a, b = (torch.stft(x, size, size // 4, size, window, return_complex=True).abs() for x in (made, target))
        total = total + (
            (a - b).norm() / b.norm() + 0.5 * nn.functional.l1_loss((a + 1e-3).log(), (b + 1e-3).log())
        ) / len(windows)
    return total
