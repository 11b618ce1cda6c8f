"""What an evaluation computes task by task: windows of texts, and prompts that are continued.

Each task has a piece, which is all that whoever computes it gets, here or in another process. The full model computes
it first, or what it found is read from a reference; then the model that is evaluated does. What is found is a line of
the journal.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from coterie.evaluate.greedy import Prompted, continue_greedily
from coterie.evaluate.journal import Continued, Finished, Key
from coterie.evaluate.reads import Reads
from coterie.evaluate.scores import predict, predict_in_steps, score
from coterie.evaluate.subject import Side, Subject

if TYPE_CHECKING:
    from torch import Tensor

    from coterie.evaluate.reference import Reference
    from coterie.evaluate.texts import Text
    from coterie.evaluate.windows import Window


class Piece(Protocol):
    """What is computed of a task. It can be pickled."""

    def of_full(self, full: Side) -> Any:
        """What the full model finds."""

    def of_model(self, model: Side, full: Any | None) -> Finished | Continued:
        """What the model finds, compared with what the full one did."""


class Task(Protocol):
    """A part of an evaluation."""

    @property
    def key(self) -> Key:
        """Which one it is, in a journal and in a reference."""

    @property
    def tokens(self) -> int:
        """How many tokens a model predicts, at most."""

    def piece(self) -> Piece:
        """What is computed."""

    def is_kept(self, kept: Reference) -> bool:
        """Whether what the full model finds is in a reference."""

    def keep(self, kept: Reference, found: Any) -> None:
        """Keeps what the full model found."""

    def kept(self, kept: Reference) -> Any:
        """What the full model found before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowTask:
    """A window of a text, to be scored.

    Attributes:
        key: Numbers of the text and of the window.
        text: The text.
        window: The window.
        in_order: Whether tokens are computed one by one, by both models.
    """

    key: tuple[int, int]
    text: Text
    window: Window
    in_order: bool

    @property
    def tokens(self) -> int:
        """Tokens that are predicted."""
        return self.window.tokens

    def piece(self) -> WindowPiece:
        """The window, and of its text what is in it."""
        text, window = self.window.cut(self.text)
        return WindowPiece(text=text, window=window, in_order=self.in_order)

    def is_kept(self, kept: Reference) -> bool:
        """Whether its logits are there."""
        return kept.has_logits(self.key)

    def keep(self, kept: Reference, found: tuple[Tensor, Reads | None]) -> None:
        """Keeps the full model's logits, and what was read for them where that is told."""
        kept.keep_logits(self.key, *found)

    def kept(self, kept: Reference) -> tuple[Tensor, Reads | None]:
        """The full model's logits, and what was read for them."""
        return kept.logits(self.key, self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowPiece:
    """A window to be scored.

    Attributes:
        text: The part of a text that it is.
        window: Which tokens of it are given, and which predicted.
        in_order: As of the task.
    """

    text: Text
    window: Window
    in_order: bool

    def of_full(self, full: Side) -> tuple[Tensor, Reads | None]:
        """The full model's logits, and what was read for them where tokens are computed in order."""
        run = predict_in_steps if self.in_order else predict
        return self._counted(full.model, lambda: run(full.model, self.text, self.window))

    def of_model(self, model: Side, full: tuple[Tensor, Reads | None] | None) -> Finished:
        """Scores the model's logits."""
        expected, full_reads = full or (None, None)
        logits, reads = self._counted(model.model, lambda: self._predict(model))
        return Finished(score(logits, self.text.ids[self.window.predicted], expected), reads, full_reads)

    def _counted(self, model: Any, compute: Callable[[], Tensor]) -> tuple[Tensor, Reads | None]:
        if not self.in_order:
            return compute(), None
        before = model.coterie.stats()
        logits = compute()
        return logits, Reads.between(before, model.coterie.stats(), self.window.tokens)

    def _predict(self, side: Side) -> Tensor:
        """Logits of the window, with the experts that are to be left out left out."""
        model, how = side.model, side.subject.adapt_experts
        if how is None:
            return (predict_in_steps if self.in_order else predict)(model, self.text, self.window)
        with model.coterie.adapt_experts(how) as adaptation:
            run = predict_in_steps if self.in_order or adaptation.settings.by_salience else predict
            return run(model, self.text, self.window)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTask:
    """A prompt, to be continued, or a question, to be answered.

    Attributes:
        prompt: The prompt.
        subject: The model that is evaluated.
        full_subject: The full model, or None.
    """

    prompt: Prompted
    subject: Subject
    full_subject: Subject | None

    @property
    def key(self) -> str:
        """A digest: the same prompt in another evaluation is the same one."""
        return self.prompt.digest

    @property
    def tokens(self) -> int:
        """New tokens at most."""
        return self.prompt.new_tokens

    def piece(self) -> PromptPiece:
        """What both models are given."""
        full = self.full_subject
        return PromptPiece(
            inputs=self.prompt.inputs(self.subject.processors),
            full_inputs=None if full is None else self.prompt.inputs(full.processors),
            new_tokens=self.tokens,
        )

    def is_kept(self, kept: Reference) -> bool:
        """Whether its continuation is there."""
        return kept.has_continuation(self.key)

    def keep(self, kept: Reference, found: tuple[int, ...]) -> None:
        """Keeps the full model's continuation."""
        kept.keep_continuation(self.key, found)

    def kept(self, kept: Reference) -> tuple[int, ...]:
        """The full model's continuation."""
        return kept.continuation(self.key, self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptPiece:
    """A prompt to be continued.

    Attributes:
        inputs: What the model is given.
        full_inputs: What the full model is given; None without one.
        new_tokens: The most tokens to continue it with.
    """

    inputs: Any
    full_inputs: Any | None
    new_tokens: int

    def of_full(self, full: Side) -> tuple[int, ...]:
        """The full model's continuation."""
        return continue_greedily(full.model, full.subject.tokenizer, self.full_inputs, self.new_tokens)

    def of_model(self, model: Side, full: tuple[int, ...] | None) -> Continued:
        """Continues it."""
        how = model.subject.adapt_experts
        with nullcontext() if how is None else model.model.coterie.adapt_experts(how):
            ids = continue_greedily(model.model, model.subject.tokenizer, self.inputs, self.new_tokens)
        return Continued(ids, full)
