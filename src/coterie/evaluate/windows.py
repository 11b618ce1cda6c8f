"""How a text is cut: which tokens a model sees, and which it then has to predict."""

from __future__ import annotations

from dataclasses import dataclass, replace

from coterie.errors import UsageError
from coterie.evaluate.texts import Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One forward pass over a piece of a text.

    Its inputs are the tokens from ``start`` up to the last but one, since nothing is asked about what follows the last.

    Attributes:
        start: Position of the first input token.
        first: Position of the first token that is predicted here, after ``start``.
        stop: Position after the last one that is predicted here.
    """

    start: int
    first: int
    stop: int

    @property
    def tokens(self) -> int:
        """How many tokens are predicted."""
        return self.stop - self.first

    @property
    def inputs(self) -> slice:
        """Where in the text the inputs are."""
        return slice(self.start, self.stop - 1)

    @property
    def predicted(self) -> slice:
        """Where in the text the predicted tokens are."""
        return slice(self.first, self.stop)

    def cut(self, text: Text) -> tuple[Text, Window]:
        """The part of a text that it needs, and the same window of this part."""
        part = replace(text, ids=text.ids[self.start : self.stop])
        return part, Window(start=0, first=self.first - self.start, stop=self.stop - self.start)


def plan_windows(tokens: int, context: int, stride: int | None = None) -> list[Window]:
    """Windows that predict every token of a text but its first exactly once.

    The first window predicts all that it can. Each later one predicts the next ``stride`` tokens, with as many tokens
    before them as fit: at least ``context - stride + 1`` for each. With ``stride == context`` no token is computed
    twice, and a window's first prediction has one token of context.

    Args:
        tokens: Length of the text.
        context: The most input tokens of a window.
        stride: Predictions of a window, at most ``context``; default: ``context``.

    Raises:
        UsageError: If ``context`` or ``stride`` is out of range.
    """
    step = context if stride is None else stride
    if context < 1:
        raise UsageError(f"context must be at least 1 token, not {context}.", got=context)
    if not 1 <= step <= context:
        raise UsageError(
            f"stride={step} is not between 1 and the context of {context} tokens.",
            advice="A larger stride would leave tokens out.",
            got=step,
        )
    windows: list[Window] = []
    first = 1
    while first < tokens:
        stop = min(tokens, first + (step if windows else context))
        windows.append(Window(start=max(0, first - 1 - (context - step)) if windows else 0, first=first, stop=stop))
        first = stop
    return windows
