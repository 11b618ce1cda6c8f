"""The dimensions of a model that the memory of a forward pass depends on."""

from __future__ import annotations

from dataclasses import dataclass

ENCODER_TOKENS = 1024
"""Tokens that come of pictures and sounds, in one forward pass, for which a plan provides."""

LAST_POSITIONS = 64
"""Positions whose logits are computed where those of the last one are wanted and the class would compute all.

A product of one row rounds otherwise than the same row of a product of many, so the last row is computed among others.
From 16 rows on its bits were those of any larger product, in float32 and bfloat16, with 1 to 16 threads; this is four
times as many.
"""

_ANY_LOGITS = 32 << 20
"""Bytes of logits that a plan provides for in any case, for a forward pass that is asked for those of all positions."""


VOCODER_FRAMES = 32
"""Frames of speech that a plan provides for at once: sound is made of no more while it is heard."""

_ROWS_OF_VOCODER = 12
"""Rows of a vocoder's widest stage that live at once: a convolution's, and those of the function between two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechShape:
    """The dimensions of what speaks that its memory depends on.

    Attributes:
        talker: Those of the talker alone.
        predictor_kv: Bytes of keys and values of the code predictor, which begins anew with each frame, and of copies.
        kept_per_token: Bytes of what the talker reads of a token's pass, kept until it speaks.
        vocoder_per_frame: Bytes that the vocoder takes for a frame.
    """

    talker: ContextShape
    predictor_kv: int
    kept_per_token: int
    vocoder_per_frame: int

    @staticmethod
    def frame_nbytes(widest: int, itemsize: int) -> int:
        """What a vocoder takes for a frame.

        Args:
            widest: Values of a frame in its widest stage: channels × samples.
            itemsize: Bytes of each.
        """
        return _ROWS_OF_VOCODER * widest * itemsize

    def activation_bytes(self, tokens: int) -> int:
        """An upper bound on what is in memory beside weights, keys and values while a model speaks.

        A talker's pass over all that it says something about, and what it reads of that; or the next frames' sound.
        """
        kept = tokens * self.kept_per_token
        return 2 * kept + max(self.talker.activation_bytes(tokens), VOCODER_FRAMES * self.vocoder_per_frame)


def _growing(nbytes: int) -> int:
    """Bytes of a cache with the room ahead of what is in it."""
    return nbytes + nbytes // 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextShape:
    """The dimensions of a model that the memory of a forward pass depends on; maxima over its components.

    Attributes:
        hidden: Width of the residual stream.
        attention: Query heads × head dimension.
        kv_per_token: Bytes of keys and values per token, all layers.
        kv_per_copy: Of these, those of the layer that has most: one layer's are copied at a time.
        intermediate: Width of the widest dense feed-forward layer.
        experts: Experts per layer.
        top_k: Experts per token.
        vocabulary: Rows of the output head.
        itemsize: Bytes per element of activations.
        score_heads: Heads whose whole matrices of attention scores are in memory at once; 0 where attention is fused.
        last_positions: Positions at the end of a prompt whose logits are computed.
        all_logits: Rows of the widest head that computes the logits of every token of a prompt; 0 if none does.
        encoder_per_token: Bytes that the widest encoder of pictures or sounds takes per token that comes of them.
        speech: Of what speaks; None for a model that does not.
    """

    hidden: int
    attention: int
    kv_per_token: int
    kv_per_copy: int
    intermediate: int
    experts: int
    top_k: int
    vocabulary: int
    itemsize: int
    score_heads: int = 0
    last_positions: int = 1
    all_logits: int = 0
    encoder_per_token: int = 0
    speech: SpeechShape | None = None

    def kv_bytes(self, tokens: int) -> int:
        """Memory for the keys and values of ``tokens`` tokens while their cache grows.

        It grows layer by layer: a layer's are copied, and the old ones freed. An eighth is for room ahead of them, and
        for the ends of pages.
        """
        return self.text_kv_bytes(tokens) + self.speech_kv_bytes(tokens)

    def text_kv_bytes(self, tokens: int) -> int:
        """That of what writes alone."""
        return _growing(self.text_kv_per_token * tokens) + self.kv_per_copy * tokens

    def speech_kv_bytes(self, tokens: int) -> int:
        """That of what speaks alone."""
        speech = self.speech
        if speech is None:
            return 0
        return _growing(speech.talker.kv_per_token * tokens) + speech.talker.kv_per_copy * tokens + speech.predictor_kv

    @property
    def text_kv_per_token(self) -> int:
        """Bytes of keys and values per token of what writes alone, without any copy."""
        return self.kv_per_token - (0 if self.speech is None else self.speech.talker.kv_per_token)

    def activation_bytes(self, tokens: int) -> int:
        """An upper bound on the activations of whatever a prompt of ``tokens`` tokens is given to do.

        An encoder runs before the layers do, and what speaks runs after them, so the largest of the three counts.
        """
        speech = 0 if self.speech is None else self.speech.activation_bytes(tokens)
        return max(self.text_bytes(tokens), self.encoder_bytes(tokens), speech)

    def encoder_bytes(self, tokens: int) -> int:
        """An upper bound on what encoders take for a prompt; for up to ``ENCODER_TOKENS`` tokens of it at once."""
        return min(tokens, ENCODER_TOKENS) * self.encoder_per_token

    def text_bytes(self, tokens: int) -> int:
        """An upper bound on the activations of a prefill of ``tokens`` tokens, without what encoders take.

        Counted are the tensors that live at once in one layer: ten of the residual's width, four of the attention's,
        three of the feed-forward's, two rows per chosen expert, three float32 rows of router scores, the attention
        mask, float32 logits of the last position, and those of a few before it where these are computed with it; and
        where the model makes them, the scores of all heads (twice in float32, twice in its own dtype) and the logits of
        all positions.

        Logits that a caller wants of all positions are made after the layers, so the larger of the two counts. They
        are provided for only as far as they are small. What is kept for a talker is there in both cases.
        """
        width = 10 * self.hidden + 4 * self.attention + 3 * self.intermediate + 2 * self.top_k * self.hidden
        router = 3 * 4 * self.experts + 4 * 8 * self.top_k
        square = self.itemsize + self.score_heads * (2 * 4 + 2 * self.itemsize)
        last = (min(tokens, self.last_positions) - 1) * self.vocabulary * self.itemsize
        logits = 2 * 4 * self.vocabulary + last + tokens * self.all_logits * self.itemsize
        layers = tokens * (width * self.itemsize + router) + tokens * tokens * square + logits
        wanted = self._after_layers(tokens) + min(tokens * self.vocabulary * self.itemsize, _ANY_LOGITS)
        return max(layers, wanted) + (0 if self.speech is None else tokens * self.speech.kept_per_token)

    def tokens_for_logits(self, tokens: int, positions: int, max_context: int, *, beside: int = 0) -> int:
        """What a pass that is asked for many logits takes of a plan's activations, as tokens.

        Args:
            tokens: Of the pass, of all its sequences.
            positions: Of them, those whose logits are computed.
            max_context: Tokens that the plan is made for.
            beside: Bytes for logits that there are beside the plan.

        Returns:
            Tokens whose share of the activations of ``max_context`` tokens is enough for the logits, and for what is
            there beside them when they are made; more than ``max_context`` if the plan has no room for them.
        """
        logits = max(0, positions * self.vocabulary * self.itemsize - beside)
        return -(-max_context * (self._after_layers(tokens) + logits) // self.activation_bytes(max_context))

    def _after_layers(self, tokens: int) -> int:
        """Bytes that a pass holds when its logits are made: the last layer's output, normalised and copied."""
        return 3 * tokens * self.hidden * self.itemsize
