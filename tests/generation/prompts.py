"""Prompts to tiny models that begin alike, with the same pictures and sounds again and again, and what is wished."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from transformers import BatchFeature

from coterie.generation.asked import Prompt
from coterie.generation.completion import Completion
from coterie.generation.grammar import Grammar
from coterie.generation.sampling import Sampling
from zoo.sizes import TEXT_IDS, TOKENS

from .conftest import DATA

Key = tuple[Any, ...]
"""Says which prompt it is."""


class Prompts(Protocol):
    """Prompts to one model.

    Attributes:
        wishes: What may be wished of its answers.
        keys: Which prompts there are.
    """

    wishes: tuple[Sampling, ...]
    keys: tuple[Key, ...]

    def asked(self, key: Key, *, late: bool) -> Any:
        """What an engine is asked; made anew each time.

        Args:
            key: Which prompt.
            late: Whether pictures and sounds are decoded when its turn has come.
        """
        ...

    def going_on(self, key: Key, answer: Completion) -> list[Key]:
        """Prompts that go on after an answer; none where that has come to its length."""
        ...


GREEDY: dict[str, Any] = {"temperature": 0}

TINY_WISHES = tuple(
    Sampling(**wishes)
    for wishes in (
        GREEDY | {"max_new_tokens": 6, "logprobs": 2},
        GREEDY | {"max_new_tokens": 1, "logprobs": 0},
        {"max_new_tokens": 5, "temperature": 1.5, "seed": 1, "logprobs": 1},
        {"max_new_tokens": 5, "temperature": 0.8, "seed": 2, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "logprobs": 1},
        {"max_new_tokens": 8, "temperature": 1.2, "seed": 3, "stop": ("4", "w7 w"), "logprobs": 1},
        {"max_new_tokens": 6, "temperature": 1, "seed": 4, "logit_bias": {5: 4.0, 9: -100.0}, "frequency_penalty": 0.5},
        {"max_new_tokens": 8, "temperature": 2, "seed": 5, "stop_token_ids": tuple(range(50, 90)), "min_new_tokens": 3},
        GREEDY | {"max_new_tokens": 6, "repetition_penalty": 1.4, "presence_penalty": 0.5, "logprobs": 1},
        GREEDY | {"max_new_tokens": 3, "prompt_logprobs": 1, "logprobs": 1},
    )
)

_BEGINNINGS: tuple[tuple[tuple[str, int, int], ...], ...] = (
    (
        ("text", 1, 9),
        ("image", 0, 0),
        ("text", 2, 7),
        ("sound", 0, 0),
        ("text", 3, 12),
        ("image", 0, 0),
        ("text", 4, 5),
    ),
    (
        ("text", 1, 9),
        ("image", 1, 0),
        ("text", 2, 7),
        ("sound", 1, 0),
        ("text", 3, 12),
        ("image", 2, 0),
        ("text", 4, 5),
    ),
    (("image", 2, 0), ("text", 5, 15), ("image", 0, 0), ("text", 6, 3), ("sound", 0, 0), ("text", 2, 3)),
)
"""The first two have the same tokens for as long as only their pictures and sounds differ."""
_LONGEST = 20
"""Parts of a prompt after which a conversation ends."""
_GRIDS = ((1, 4, 4), (1, 4, 4), (1, 4, 8))
_FRAMES = (40, 40)


class TinyPrompts:
    """Random tokens for a model of the zoo.

    Args:
        config: Of the model.
        modalities: What it takes.
    """

    wishes = TINY_WISHES

    def __init__(self, config: Any, modalities: tuple[str, ...]) -> None:
        self._config = config
        kinds = {"text", *(("image",) if "image" in modalities else ()), *(("sound",) if "audio" in modalities else ())}
        beginnings = [[part for part in parts if part[0] in kinds] for parts in _BEGINNINGS]
        ends = [("text", 7, 1), ("text", 7, 4), ("text", 8, 11)]
        # Those that differ only in what they show are drawn next to each other.
        longest = max(map(len, beginnings))
        self.keys = tuple(
            (*parts[:length], end) for length in range(longest, 0, -1) for end in ends for parts in beginnings
        )

    def asked(self, key: Key, *, late: bool) -> Any:
        inputs = self._inputs(key)
        if late and inputs.keys() & {"pixel_values", "input_features"}:
            return lambda: Prompt(inputs=lambda: BatchFeature(inputs), tokens=None)
        return inputs

    def going_on(self, key: Key, answer: Completion) -> list[Key]:
        # Random weights may say what stands for a picture.
        if len(key) > _LONGEST or any(token >= TEXT_IDS for token in answer.token_ids):
            return []
        said = [("said", token, 1) for token in answer.token_ids]
        return [(*key, *said, ("text", which, 4)) for which in (7, 8)]

    def _inputs(self, key: Key) -> dict[str, torch.Tensor]:
        ids = [token for part in key for token in _tokens(*part)]
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}
        pictures = [which for kind, which, _ in key if kind == "image"]
        sounds = [which for kind, which, _ in key if kind == "sound"]
        if pictures:
            inputs |= self._pictures(pictures)
            if self._config.model_type.startswith("qwen3_vl"):
                inputs["mm_token_type_ids"] = (inputs["input_ids"] == TOKENS["image"]).int()
        if sounds:
            inputs |= self._sounds(sounds)
        return inputs

    def _pictures(self, which: list[int]) -> dict[str, torch.Tensor]:
        vision = self._config.vision_config
        grid = torch.tensor([_GRIDS[one] for one in which])
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        values = [torch.randn(int(grid[place].prod()), width, generator=_generator(100 + one)) for place, one in
                  enumerate(which)]  # fmt: skip
        return {"pixel_values": torch.cat(values), "image_grid_thw": grid}

    def _sounds(self, which: list[int]) -> dict[str, torch.Tensor]:
        bins = self._config.audio_config.num_mel_bins
        values = [torch.randn(1, bins, _FRAMES[one], generator=_generator(200 + one)) for one in which]
        features = torch.cat(values)
        return {
            "input_features": features,
            "feature_attention_mask": torch.ones(len(which), features.shape[-1], dtype=torch.int64),
        }


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _tokens(kind: str, which: int, count: int) -> list[int]:
    if kind == "said":
        return [which]
    if kind == "image":
        frames, height, width = _GRIDS[which]
        return [TOKENS["vision_start"], *[TOKENS["image"]] * (frames * height * width // 4), TOKENS["vision_end"]]
    if kind == "sound":
        return [TOKENS["audio_start"], *[TOKENS["audio"]] * (_FRAMES[which] // 8), TOKENS["audio_end"]]
    return torch.randint(3, TEXT_IDS, (count,), generator=_generator(which)).tolist()


_TURNS: tuple[tuple[tuple[str, str | None], ...], ...] = (
    (("And it came to pass", None), ("What is this?", "sandal.png"), ("And again?", "sandal.png"), ("Why?", None)),
    (("And it came to pass", None), ("What is this?", "ankle-boot.png"), ("And what is heard?", "dog.wav")),
    (("Who speaks?", "go.wav"), ("In those days", None), ("Who?", "go.wav")),
)


class BundledPrompts:
    """Conversations with the bundled model."""

    wishes = tuple(
        Sampling(**wishes)
        for wishes in (
            GREEDY | {"max_new_tokens": 8, "logprobs": 2},
            {"max_new_tokens": 10, "temperature": 1, "seed": 1, "logprobs": 1, "stop": ("e", "th")},
            {"max_new_tokens": 8, "temperature": 0.7, "seed": 2, "top_p": 0.9},
            GREEDY | {"max_new_tokens": 9, "stop": (" the",), "logprobs": 0},
            GREEDY | {"max_new_tokens": 12, "grammar": Grammar.json_object(), "logprobs": 1},
            {"max_new_tokens": 12, "temperature": 1, "seed": 3, "grammar": Grammar.regex("(yes|no)/[0-9]{2,4}")},
            {"max_new_tokens": 6, "temperature": 1, "seed": 4, "grammar": Grammar.choice(["it was so", "it was not"])},
            GREEDY | {"max_new_tokens": 3, "prompt_logprobs": 1},
        )
    )  # fmt: skip

    keys = tuple(turns[:end] for turns in _TURNS for end in range(1, len(turns) + 1))

    def asked(self, key: Key, *, late: bool) -> Any:
        return list(_messages(key))

    def going_on(self, key: Key, answer: Completion) -> list[Key]:
        return [] if len(key) > len(_TURNS[0]) else [(*key, (answer.text, "said"), ("And then?", None))]


def _messages(turns: Key) -> Iterator[Mapping[str, Any]]:
    said = True
    for text, file in turns:
        if file == "said":
            yield {"role": "assistant", "content": text}
            said = True
            continue
        if not said:
            yield {"role": "assistant", "content": "It is so."}
        said = False
        shown = (
            [] if file is None else [{"type": "image" if file.endswith("png") else "audio", "path": str(DATA / file)}]
        )
        yield {"role": "user", "content": [*shown, {"type": "text", "text": text}]}
