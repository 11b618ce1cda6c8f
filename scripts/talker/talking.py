"""The talker with its code predictor: from what the thinker hears and writes to codes.

The sequences are those that transformers' ``generate`` makes: what the user said (the thinker's hidden states where it
is sound, its embeddings where it is text), the beginning of the model's turn with the voice, then a frame at a time.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen3OmniMoeConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import (
    Qwen3OmniMoeTalkerForConditionalGeneration as Talker,
)
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import load_balancing_loss_func

from talker.configuration import (
    AUDIO_END,
    AUDIO_START,
    CODEC_BOS,
    CODEC_EOS,
    CODEC_NOTHINK,
    CODEC_PAD,
    CODEC_THINK_BOS,
    CODEC_THINK_EOS,
    GROUPS,
    OPEN_ASSISTANT,
    OPEN_USER,
    TTS_BOS,
    TTS_EOS,
    TTS_PAD,
)
from talker.training import Plan, train
from talker.vocoder import Recording

BATCH = 16
PLAN = Plan(steps=800, rate=2e-3, least=0.05, betas=(0.9, 0.999), seed=2)

_BALANCE = 0.01
_PLAIN_TEXT = range(32, 8192)
_MOST_TEXT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Thoughts:
    """What the talker reads of the thinker.

    Attributes:
        embedding: Its input embedding, float32 [V, D].
        tokens: Word → its tokens.
        heard: Word → hidden states of its sound in several voices, each float32 [sound tokens, D].
    """

    embedding: Tensor
    tokens: dict[str, list[int]]
    heard: dict[str, list[Tensor]]


def trained_talker(
    config: Qwen3OmniMoeConfig, recordings: Sequence[Recording], thoughts: Thoughts, path: Path
) -> Talker:
    """The talker, trained to the end of :data:`PLAN`; ``path`` keeps its state."""
    torch.manual_seed(PLAN.seed)
    model = Talker(config.talker_config)
    for value in model.parameters():
        if value.dim() >= 2:
            # The class leaves the weights of experts as they are in fresh memory.
            nn.init.normal_(value, std=0.02)
    lesson = _Lesson(model, thoughts)

    def loss(step: int, choice: random.Random) -> Tensor:
        del step
        return lesson.loss(choice.sample(list(recordings), BATCH), choice)

    train(model, loss, PLAN, path)
    return model


class _Lesson:
    """The loss of a batch: legend of shapes B utterances, L positions, N frames of all of them, H hidden size."""

    def __init__(self, model: Talker, thoughts: Thoughts) -> None:
        self._model = model
        self._thoughts = thoughts
        self._books = [model.model.codec_embedding, *model.code_predictor.model.codec_embedding]

    def loss(self, chosen: Sequence[Recording], choice: random.Random) -> Tensor:
        """Cross entropy of each frame's first code and of its others, and how evenly experts are used."""
        sequences, begins = [], []
        for one in chosen:
            sequence, begin = self._sequence(one, choice)
            sequences.append(sequence)
            begins.append(begin)
        lengths = [len(sequence) for sequence in sequences]
        # Padding follows: causal attention keeps it from everything that counts.
        x_BLH = pad_sequence(sequences, batch_first=True)
        positions = torch.arange(x_BLH.shape[1]).expand(3, len(chosen), -1)
        outputs = self._model.model(inputs_embeds=x_BLH, position_ids=positions, output_router_logits=True)
        hidden = outputs.last_hidden_state
        ends = [
            hidden[row, begin - 1 : length] for row, (begin, length) in enumerate(zip(begins, lengths, strict=True))
        ]
        first = [torch.cat([torch.from_numpy(one.codes[:, 0]), torch.tensor([CODEC_EOS])]) for one in chosen]
        total = nn.functional.cross_entropy(self._model.codec_head(torch.cat(ends)), torch.cat(first))
        codes = torch.cat([torch.from_numpy(one.codes) for one in chosen])
        mask = torch.tensor([[int(at < length) for at in range(x_BLH.shape[1])] for length in lengths])
        settings = self._model.config.text_config
        balance = load_balancing_loss_func(
            outputs.router_logits, settings.num_experts, settings.num_experts_per_tok, mask
        )
        return total + self._further(torch.cat([end[:-1] for end in ends]), codes) + _BALANCE * balance

    def _further(self, hidden_NH: Tensor, codes_NQ: Tensor) -> Tensor:
        """Of the code predictor, which reads the talker's hidden state and the frame's codes so far."""
        predictor = self._model.code_predictor
        read = [hidden_NH, *(self._books[group](codes_NQ[:, group]) for group in range(GROUPS - 1))]
        hidden = predictor.model(inputs_embeds=torch.stack(read, 1)).last_hidden_state
        return sum(
            nn.functional.cross_entropy(predictor.lm_head[group](hidden[:, group + 1]), codes_NQ[:, group + 1])
            for group in range(GROUPS - 1)
        )

    def _sequence(self, one: Recording, choice: random.Random) -> tuple[Tensor, int]:
        """Inputs of one utterance [L, H], and where its frames begin."""
        said = self._thoughts.tokens[one.word]
        text = self._projected([*OPEN_ASSISTANT, *said])
        pad, bos, eos = self._projected([TTS_PAD, TTS_BOS, TTS_EOS]).split(1)
        speaker = self._model.config.speaker_id[one.voice]
        marks = [CODEC_NOTHINK, CODEC_THINK_BOS, CODEC_THINK_EOS, speaker, CODEC_PAD, CODEC_BOS]
        begin = torch.cat([text[:3], pad.expand(4, -1), bos, text[3:4]])
        begin = torch.cat([begin[:3], begin[3:] + self._books[0](torch.tensor(marks))])
        codes = torch.from_numpy(one.codes)
        frames = sum(book(codes[:, group]) for group, book in enumerate(self._books))
        trailing = torch.cat([text[4:], eos, pad.expand(max(0, len(frames) - len(said)), -1)])[: len(frames)]
        prompt = torch.cat([*(self._asked(one.word, choice) for _ in range(choice.choice((1, 1, 1, 2)))), begin])
        return torch.cat([prompt, frames + trailing]), len(prompt)

    def _asked(self, word: str, choice: random.Random) -> Tensor:
        """A turn of the user: the word as it sounds, now and then another one, or some text. What is said is text."""
        kind = choice.random()
        if kind < 0.3:
            length = choice.randint(0, _MOST_TEXT)
            tokens = [choice.choice(_PLAIN_TEXT) for _ in range(length)] if kind < 0.2 else self._thoughts.tokens[word]
            return self._projected([*OPEN_USER, *tokens])
        heard = self._thoughts.heard[choice.choice(sorted(self._thoughts.heard)) if kind < 0.4 else word]
        sound = self._model.hidden_projection(choice.choice(heard))
        return torch.cat([self._projected([*OPEN_USER, AUDIO_START]), sound, self._projected([AUDIO_END])])

    def _projected(self, tokens: Sequence[int]) -> Tensor:
        return self._model.text_projection(self._thoughts.embedding[torch.tensor(tokens)])
