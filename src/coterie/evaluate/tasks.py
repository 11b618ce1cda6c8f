"""What an evaluation computes piece by piece: windows of texts, and prompts that are continued.

Each piece is computed by the full model first, or read from a reference, and then by the model that is evaluated. What
is found is a line of the journal.
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
from coterie.evaluate.subject import Subject

if TYPE_CHECKING:
    from torch import Tensor

    from coterie.evaluate.reference import Reference
    from coterie.evaluate.texts import Text
    from coterie.evaluate.windows import Window


class Task(Protocol):
    """A piece of an evaluation."""

    @property
    def key(self) -> Key:
        """Which one it is, in a journal and in a reference."""

    @property
    def tokens(self) -> int:
        """How many tokens a model predicts, at most."""

    def is_kept(self, kept: Reference) -> bool:
        """Whether what the full model finds is in a reference."""

    def keep(self, full: Any, kept: Reference) -> None:
        """Runs the full model, and keeps what it finds."""

    def finish(self, model: Any, full: Any | None, kept: Reference | None) -> Finished | Continued:
        """Runs the model, and the full one before it unless what that found is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowTask:
    """A window of a text, to be scored.

    Attributes:
        key: Numbers of the text and of the window.
        text: The text.
        window: The window.
        subject: The model that is evaluated.
    """

    key: tuple[int, int]
    text: Text
    window: Window
    subject: Subject

    @property
    def tokens(self) -> int:
        """Tokens that are predicted."""
        return self.window.tokens

    def is_kept(self, kept: Reference) -> bool:
        """Whether its logits are there."""
        return kept.has_logits(self.key)

    def keep(self, full: Any, kept: Reference) -> None:
        """Keeps the full model's logits, and what was read for them where that is told."""
        kept.keep_logits(self.key, *self._full(full))

    def finish(self, model: Any, full: Any | None, kept: Reference | None) -> Finished:
        """Scores the model's logits."""
        expected, full_reads = None, None
        if kept is not None:
            expected, full_reads = kept.logits(self.key, self.tokens)
        if full is not None:
            expected, full_reads = self._full(full)
        logits, reads = self._counted(model, lambda: self._predict(model))
        return Finished(score(logits, self.text.ids[self.window.predicted], expected), reads, full_reads)

    def _full(self, full: Any) -> tuple[Tensor, Reads | None]:
        run = predict_in_steps if self.subject.in_order else predict
        return self._counted(full, lambda: run(full, self.text, self.window))

    def _counted(self, model: Any, compute: Callable[[], Tensor]) -> tuple[Tensor, Reads | None]:
        """Logits, and what was read for them where tokens are computed in order."""
        if not self.subject.in_order:
            return compute(), None
        before = model.coterie.stats()
        logits = compute()
        return logits, Reads.between(before, model.coterie.stats(), self.tokens)

    def _predict(self, model: Any) -> Tensor:
        """Logits of the window, with the experts that are to be left out left out."""
        in_order, how = self.subject.in_order, self.subject.adapt_experts
        if how is None:
            return (predict_in_steps if in_order else predict)(model, self.text, self.window)
        with model.coterie.adapt_experts(how) as adaptation:
            run = predict_in_steps if in_order or adaptation.settings.by_salience else predict
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

    def is_kept(self, kept: Reference) -> bool:
        """Whether its continuation is there."""
        return kept.has_continuation(self.key)

    def keep(self, full: Any, kept: Reference) -> None:
        """Keeps the full model's continuation."""
        kept.keep_continuation(self.key, self._full(full))

    def finish(self, model: Any, full: Any | None, kept: Reference | None) -> Continued:
        """Continues it."""
        full_ids = None if full is None else self._full(full)
        if kept is not None:
            full_ids = kept.continuation(self.key, self.tokens)
        how = self.subject.adapt_experts
        with nullcontext() if how is None else model.coterie.adapt_experts(how):
            ids = continue_greedily(model, self.subject.processors, self.prompt)
        return Continued(ids, full_ids)

    def _full(self, full: Any) -> tuple[int, ...]:
        assert self.full_subject is not None, "there is no full model"
        return continue_greedily(full, self.full_subject.processors, self.prompt)
