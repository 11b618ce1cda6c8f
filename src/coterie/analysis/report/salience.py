"""Salience of what a short run of a model read: token by token, and which experts serve the salient ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from coterie.analysis.plots.canvas import Shading, draw_map, new_figure, number_ticks, style
from coterie.analysis.plots.selection import bank_labels
from coterie.analysis.report.findings import Answer, Picture, Table, claim_above, estimate_windows, shown
from coterie.profiles.inference import Floats
from coterie.spec import BankKey, Event, ExpertsSelected

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = ("surprise", "novelty", "arousal", "conflict", "salience")
"""What is shown of a token; nobody gives rewards to a trial."""
_EXTREMES = 12
_LISTED = 32
_LEAST_USES = 32
"""Of an expert that is told of by itself."""


class Scored(Protocol):
    """What is asked of a token's record: :class:`coterie.engine.salience.TokenSalience`."""

    @property
    def token_id(self) -> int | None:
        """The token."""
        ...

    @property
    def salience(self) -> float:
        """From 0 to 1."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SalientTokens:
    """Salience of the tokens that a trial read, and use of experts weighted by it.

    Attributes:
        token_ids: [N] the tokens.
        texts: The text of each; empty where nobody could tell.
        window: [N] the window that each was read in.
        parts: Name of the part → [N] its values, NaN where unknown; ``salience`` is their mean.
        used: Bank → [W, E] tokens of each window that chose each expert.
        weighted: Bank → [W, E] sums of the salience of these tokens.
    """

    token_ids: npt.NDArray[np.int64]
    texts: tuple[str, ...]
    window: npt.NDArray[np.int64]
    parts: Mapping[str, Floats]
    used: Mapping[BankKey, Floats]
    weighted: Mapping[BankKey, Floats]

    def factor(self, bank: BankKey, windows: slice = slice(None)) -> Floats:
        """[E] mean salience of the tokens that chose each expert over that of all choices; NaN of unused ones.

        Usage weighted by salience is usage times this.
        """
        used, weighted = (rows[bank][windows].sum(axis=0) for rows in (self.used, self.weighted))
        with np.errstate(invalid="ignore", divide="ignore"):
            found: Floats = (weighted / used) / (weighted.sum() / used.sum())
        return found


class SalienceOfWindows:
    """Puts the salience of each window's tokens beside the experts that they chose.

    It is an observer, of the choices.

    Args:
        component: The part of the model.
        experts: Bank → how many experts.
    """

    def __init__(self, component: str, experts: Mapping[BankKey, int]) -> None:
        self._experts = {bank: count for bank, count in experts.items() if bank.component == component}
        self._chosen: dict[BankKey, npt.NDArray[np.int64]] = {}
        self._tokens: list[tuple[int, Scored]] = []
        self._used: dict[BankKey, list[Floats]] = {bank: [] for bank in self._experts}
        self._weighted: dict[BankKey, list[Floats]] = {bank: [] for bank in self._experts}
        self._windows = 0

    def on_event(self, event: Event) -> None:
        """Keeps a window's choices."""
        if isinstance(event, ExpertsSelected) and event.bank in self._experts:
            self._chosen[event.bank] = np.asarray(event.expert_ids, np.int64)

    def end_window(self, tokens: Sequence[Scored], prefix: int) -> None:
        """Adds up a window.

        Args:
            tokens: Its records, one for each token that was read.
            prefix: So many of the first are no text.
        """
        saliences = np.array([token.salience for token in tokens])[prefix:]
        for bank, count in self._experts.items():
            chosen = self._chosen.pop(bank, None)
            used: Floats = np.zeros(count)
            weighted: Floats = np.zeros(count)
            # A bank that only some of the tokens pass cannot be told.
            if chosen is not None and len(chosen) == len(tokens):
                ids = chosen[prefix:]
                rows, places = np.nonzero((ids >= 0) & (ids < count))
                flat = ids[rows, places]
                used = np.bincount(flat, minlength=count).astype(np.float64)
                weighted = np.bincount(flat, weights=saliences[rows], minlength=count).astype(np.float64)
            self._used[bank].append(used)
            self._weighted[bank].append(weighted)
        self._tokens += [(self._windows, token) for token in tokens[prefix:]]
        self._windows += 1

    def result(self, text_of: Callable[[int], str] | None) -> SalientTokens:
        """What was found.

        Args:
            text_of: Token id → its text.
        """
        ids = np.array([-1 if token.token_id is None else token.token_id for _, token in self._tokens], np.int64)
        return SalientTokens(
            token_ids=ids,
            texts=() if text_of is None else tuple(text_of(int(one)) for one in ids),
            window=np.array([window for window, _ in self._tokens], np.int64),
            parts={
                part: np.array(
                    [np.nan if (value := getattr(token, part)) is None else value for _, token in self._tokens]
                )
                for part in PARTS
            },
            used={bank: np.stack(rows) for bank, rows in self._used.items()},
            weighted={bank: np.stack(rows) for bank, rows in self._weighted.items()},
        )


def salience(tokens: SalientTokens | None) -> Answer:
    """Which tokens are salient, and whether some experts serve more salient ones than others."""
    question = "Which tokens are salient, and do some experts serve them?"
    if tokens is None or not len(tokens.token_ids):
        return Answer(
            key="salience",
            question=question,
            answer="Not measured: no text was given for a short run of the model (`--text`).",
        )
    windows = int(tokens.window.max()) + 1
    alike = estimate_windows(np.array([one for w in range(windows) if (one := _agreement(tokens, w)) is not None]))
    number = len(tokens.token_ids)
    claim = claim_above(
        "correlation of experts' mean salience in a window with that in all others",
        alike,
        (0.0, 0.0, 0.0),
        tokens=number,
    )
    factors = {bank: tokens.factor(bank) for bank in tokens.used}
    known = np.concatenate([one[_often(tokens, bank)] for bank, one in factors.items()] or [np.zeros(0)])
    values = tokens.parts["salience"]
    low, high = np.quantile(values, (0.1, 0.9))
    if alike.value is None or not len(known):
        verdict = "The data do not tell which experts serve salient tokens"
    elif claim.holds:
        few, many = np.quantile(known, (0.05, 0.95))
        verdict = (
            f"Some experts serve more salient tokens than others, the same ones in other parts of the text "
            f"(correlation {shown(alike.value)}); weighting usage by salience changes that of nine in ten experts "
            f"by factors between {few:.2f} and {many:.2f}"
        )
    else:
        verdict = "It is not shown that some experts serve more salient tokens than others"
    return Answer(
        key="salience",
        question=question,
        answer=f"{verdict}. Salience is {values.mean():.3f} on average, a tenth of the tokens are below {low:.3f}, a "
        f"tenth above {high:.3f}.",
        claims=(claim,),
        pictures=(Picture(name="salience", title="Salience token by token, in the middle of the text"),),
        tables=(
            _token_table(
                f"The {_EXTREMES} most salient tokens", tokens, np.argsort(-values, kind="stable")[:_EXTREMES]
            ),
            _token_table("The first tokens of the picture", tokens, _middle_window(tokens)[:_LISTED]),
            _expert_table(factors, tokens),
        ),
        notes=(
            "Salience is the mean of surprise, novelty, arousal, reward (0.5: nobody gave one) and conflict, each from "
            "0 to 1, against earlier tokens (docs/salience.md). It is this project's measure, without a claim that it "
            "is what matters to a reader. Usage weighted by salience counts each choice of an expert by the salience "
            "of the token.",
        ),
    )


def _agreement(tokens: SalientTokens, window: int) -> float | None:
    """Mean over banks of the correlation over experts of their mean salience in a window with that in all others."""
    found = []
    for bank, used in tokens.used.items():
        weighted = tokens.weighted[bank]
        rest_used, rest_weighted = used.sum(axis=0) - used[window], weighted.sum(axis=0) - weighted[window]
        both = (used[window] > 0) & (rest_used > 0)
        here, there = weighted[window][both] / used[window][both], rest_weighted[both] / rest_used[both]
        if both.sum() > 2 and here.std() > 0 and there.std() > 0:
            found.append(np.corrcoef(here, there)[0, 1])
    return float(np.mean(found)) if found else None


def _often(tokens: SalientTokens, bank: BankKey) -> npt.NDArray[np.bool_]:
    """[E] experts that are used often enough, in each half."""
    used = tokens.used[bank]
    middle = len(used) // 2
    found: npt.NDArray[np.bool_] = np.minimum(used[:middle].sum(axis=0), used[middle:].sum(axis=0)) >= _LEAST_USES / 2
    return found


def _middle_window(tokens: SalientTokens) -> npt.NDArray[np.intp]:
    """Places of the tokens of the window in the middle: means over earlier tokens are settled there."""
    return np.flatnonzero(tokens.window == tokens.window.max() // 2)


def _token_table(title: str, tokens: SalientTokens, places: npt.NDArray[np.intp]) -> Table:
    rows = []
    for place in places:
        text = repr(tokens.texts[place]) if tokens.texts else "–"
        values = [tokens.parts[part][place] for part in PARTS]
        rows.append(
            (
                str(place),
                str(tokens.token_ids[place]),
                text,
                *(f"{value:.2f}" if np.isfinite(value) else "–" for value in values),
            )
        )
    return Table(title=title, columns=("place", "id", "token", *PARTS), rows=tuple(rows))


def _expert_table(factors: Mapping[BankKey, Floats], tokens: SalientTokens) -> Table:
    """The experts whose usage grows most when it is weighted, and what both halves say."""
    labels = dict(zip(factors, bank_labels(list(factors)), strict=True))
    middle = (int(tokens.window.max()) + 1) // 2
    halves = [{bank: tokens.factor(bank, part) for bank in factors} for part in (slice(middle), slice(middle, None))]
    places = [
        (-factor, labels[bank], expert, bank)
        for bank, one in factors.items()
        for expert, factor in enumerate(one)
        if _often(tokens, bank)[expert]
    ]
    rows = tuple(
        (
            f"{label}:{expert}",
            f"{tokens.used[bank][:, expert].sum():,.0f}",
            *(f"{one:.3f}" for one in (-less, *(half[bank][expert] for half in halves))),
        )
        for less, label, expert, bank in sorted(places)[:_EXTREMES]
    )
    return Table(
        title=f"Experts of {_LEAST_USES} tokens or more whose usage salience raises most (LAYER:EXPERT)",
        columns=("expert", "tokens", "factor", "first half", "second half"),
        rows=rows,
    )


@style()
def salience_figure(tokens: SalientTokens) -> Figure:
    """The parts of the salience of every token of the middle window, as shades from 0 to 1."""
    places = _middle_window(tokens)
    values = np.stack([tokens.parts[part][places] for part in PARTS])
    figure = new_figure(f"Salience of tokens {places[0]:,} to {places[-1]:,} of the text", height=1.9)
    axes = figure.subplots()
    image = draw_map(axes, values, Shading.from_zero(values))
    number_ticks(axes, "y", list(PARTS))
    number_ticks(axes, "x", [str(place) for place in places])
    axes.set_xlabel("token")
    figure.colorbar(image, ax=axes)
    return figure
