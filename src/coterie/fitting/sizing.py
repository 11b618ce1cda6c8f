"""How large the experts of a store should be for a memory budget: one simple rule.

1. All experts should stay in memory: then nothing is read, and the store has the most bits with which this is so.
2. If that would take fewer than :data:`LEAST_BITS` (:data:`LEAST_BITS_FOR_DOMAINS` for named domains), a model loses
   too much, and some experts are read from the disk. Fewer bits are faster, more lose less. The store has the most bits
   with which the planner expects at least :data:`SPEED_KEPT` of the highest speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import floor
from pathlib import Path

from coterie.errors import MemoryBudgetError, UsageError
from coterie.fitting.pruning import KeptShares
from coterie.fitting.report import Aim, Candidate, Sizing
from coterie.inspection.what_fits import process_nbytes
from coterie.planner import Forecast, HitRates, Machine, measure_machine
from coterie.planner.asked import Asked, open_asked
from coterie.planner.basis import by_profile, without_text
from coterie.planner.machine import Tell
from coterie.planner.subject import Subject
from coterie.planner.words import exact_size, why_not
from coterie.spec import DEFAULT_POLICY, format_bytes
from coterie.spec.defaults import PLANNED_ANSWER_TOKENS, PLANNED_PROMPT_TOKENS
from coterie.spec.encodings import NATIVE

LEAST_BITS = 3.0
"""Bits per weight below which a model loses more than most uses allow: from about here on, the bundled model with
allocated and calibrated bits has a divergence below 0.01, which is excellent (docs/evaluate.md)."""

LEAST_BITS_FOR_DOMAINS = 2.0
"""The same where domains are named, on text of these."""

STEP_BITS = (2.0, 2.5, 3.0, 3.5, 4.0, 4.5)
"""What is considered where not all experts fit."""

SPEED_KEPT = 0.9
"""Of the highest speed that the planner expects, what is worth more bits."""

_SLACK = 64
"""One part in so many of what is left for experts stays free: a budget is divided anew when a model is opened."""

_PLANNED = "int4"
"""The scheme that memory beside experts is planned for: what any scheme needs to compute."""


class Sizer:
    """Says how large experts may be.

    Args:
        model: What the store is made of: a checkpoint or a store.
        memory: The budget in bytes.
        context: Tokens that it provides for; default: as opening a model has it.
        component: Only this part of a checkpoint.
        dense_scheme: How linear layers outside experts will be stored, of a checkpoint.
        revision: Of a Hub repository.
        offline: Use only what is on this machine.
        kept: What will be left of its experts; default: all.
    """

    def __init__(
        self,
        model: str | Path,
        memory: int,
        *,
        context: int | None = None,
        component: str | None = None,
        dense_scheme: str | None = None,
        revision: str | None = None,
        offline: bool = False,
        kept: KeptShares | None = None,
    ) -> None:
        self._memory = memory
        self._kept = kept or KeptShares(components={})
        self._native = open_asked(model, component=component, revision=revision, offline=offline)
        self._asked = self._native
        if self._native.checkpoint is not None:
            self._asked = open_asked(
                model,
                component=component,
                scheme=_PLANNED,
                dense_scheme=dense_scheme,
                revision=revision,
                offline=offline,
            )
        self.context = context or self._native.contents.context
        self._process = process_nbytes()
        self._base = self._pruned(self._forecast(self._asked))
        if self._native.checkpoint is None:
            # Its experts will be in schemes, which take buffers to be computed with.
            footprint = self._base.subject.footprint
            buffers = max(footprint.dequantising, 2 * footprint.record)
            subject = replace(self._base.subject, footprint=replace(footprint, dequantising=buffers))
            self._base = replace(self._base, subject=subject)

    @property
    def place(self) -> Path:
        """Where experts would be read from."""
        return self._asked.place

    def check_running(self, memory: int, context: int, option: str) -> None:
        """Refuses a budget in which the model itself cannot be run, as recording, calibration and evaluation do.

        Args:
            memory: The budget in bytes.
            context: Tokens of a window.
            option: How the command line names it.

        Raises:
            MemoryBudgetError: Names the smallest that would do.
        """
        fit = replace(self._forecast(self._native), context=context).fit(memory)
        if not fit.enough:
            reason = why_not(fit, self._native.contents.footprint)
            raise MemoryBudgetError(
                f"The full model has to be run to see what its experts do, and will not run in {format_bytes(memory)}, "
                f"because {reason}.",
                advice=f"Give at least {option} {exact_size(fit.minimum)}. The store may still be for less memory.",
                budget=memory,
                minimum=fit.minimum,
            )

    def choose(
        self,
        *,
        bits: float | None,
        domains: Sequence[str],
        profile: str | Path | None = None,
        pruned: Path | None = None,
        machine: Machine | None = None,
        measure: bool = True,
        tell: Tell | None = None,
    ) -> Sizing:
        """How large experts are to be.

        Args:
            bits: What somebody asks for; None to choose.
            domains: Those that the store is for; empty for all.
            profile: What hits are forecast by, if speed decides; else dimensions alone.
            pruned: The pruned store that the profile is of; None if it is of the model.
            machine: What was measured of the machine; None to measure this one, if speed decides.
            measure: Whether to measure where no machine is given.
            tell: Called with a line about what is being done.

        Raises:
            MemoryBudgetError: If the store would not run in the budget; names the smallest in which one would.
            UsageError: If the model fits as it is, or has no more bits than are asked for.
        """
        base = self._base
        fit = base.fit(self._memory)
        if bits is not None:
            self._check_fewer(bits)
            return self._asked_for(bits)
        native = self._pruned(self._forecast(self._native))
        if native.fit(self._memory).expert_nbytes >= native.subject.footprint.experts:
            self._refuse_what_fits()
        room = max(0, fit.expert_nbytes - fit.expert_nbytes // _SLACK)
        most = min(self._bits_of(room), self._native_bits)
        least = LEAST_BITS_FOR_DOMAINS if domains else LEAST_BITS
        if most >= least:
            reason = (
                f"All experts stay in memory: {format_bytes(room)} are left for them, about {most:.2f} bits per weight."
            )
            return self._sizing("memory", most, room, 1.0, reason, expert_bytes=room)
        hit_rates = None if profile is None else self._profiled(profile, domains, pruned)
        return self._by_speed(least, most, hit_rates, machine, measure, tell)

    def _refuse_what_fits(self) -> None:
        whole, fits = self._forecast(self._native), f"fits in {format_bytes(self._memory)} as it is"
        if whole.fit(self._memory).expert_nbytes >= whole.subject.footprint.experts:
            raise UsageError(
                f"{self._native.name} {fits}: nothing would be gained by fewer bits.",
                advice="Use it as it is; or say how small it is to be: --bits.",
            )
        raise UsageError(
            f"What is left of {self._native.name} {fits}: nothing would be gained by fewer bits.",
            advice="Keep more experts; or prune it alone (coterie prune); or say how small it is to be: --bits.",
        )

    def _by_speed(
        self,
        least: float,
        most: float,
        hit_rates: HitRates | None,
        machine: Machine | None,
        measure: bool,
        tell: Tell | None,
    ) -> Sizing:
        self._check_runs(least)
        if machine is None and measure:
            precisions = sorted(self._base.subject.precisions - {NATIVE})
            machine = measure_machine(
                self.place, record=int(self._base.subject.record), precisions=precisions, tell=tell
            )
        forecast = replace(self._base, machine=machine)
        if hit_rates is not None:
            forecast = replace(forecast, hit_rates=hit_rates)
        candidates = []
        for bits in (one for one in STEP_BITS if one >= least):
            there = replace(forecast, subject=self._scaled(bits))
            fit = there.fit(self._memory)
            if fit.enough:
                speed = there.speed(share := there.share(fit))
                tokens = None if speed is None else speed.tokens_per_second.expected
                candidates.append(Candidate(bits=bits, share=share, tokens_per_second=tokens))
        fastest = max((one.tokens_per_second or 0.0 for one in candidates), default=0.0)
        chosen = max(
            (one for one in candidates if one.tokens_per_second and one.tokens_per_second >= SPEED_KEPT * fastest),
            key=lambda one: one.bits,
            default=candidates[0],
        )
        why = f"All experts would fit with {most:.2f} bits per weight, which loses too much (below {least:g}). "
        if chosen.tokens_per_second is None:
            why += f"Some are read from the disk, fewest with {chosen.bits:g} bits; no speed was measured."
        else:
            why += (
                f"With {chosen.bits:g} bits {chosen.share:.0%} of them fit, and {chosen.tokens_per_second:.1f} tokens "
                f"per second are expected; the highest speed is {fastest:.1f}."
            )
        why += self._pruning_would_do(most / least)
        room = self._base.fit(self._memory).expert_nbytes
        return self._sizing(
            "speed", chosen.bits, room, chosen.share, why, bits=chosen.bits, candidates=tuple(candidates)
        )

    def _pruning_would_do(self, share: float) -> str:
        """With how many experts all would stay in memory with the fewest bits; nothing where pruning is no way."""
        subject, kept = self._base.subject, floor(100 * share)
        if self._kept.components or kept / 100 * subject.experts < subject.top_k:
            return ""
        return f" With --keep {kept}%, which prunes the others, all that are left would stay in memory."

    def _asked_for(self, bits: float) -> Sizing:
        self._check_runs(bits)
        there = replace(self._base, subject=self._scaled(bits))
        fit = there.fit(self._memory)
        reason = f"{bits:g} bits per weight were asked for, with which {there.share(fit):.0%} of the experts fit."
        return self._sizing("bits", bits, fit.expert_nbytes, there.share(fit), reason, bits=bits)

    def _check_runs(self, bits: float) -> None:
        """Refuses a budget in which a store of so many bits would not run."""
        there = replace(self._base, subject=self._scaled(bits))
        fit = there.fit(self._memory)
        if not fit.enough:
            raise MemoryBudgetError(
                f"A store of {self._native.name} with {bits:g} bits per weight will not run in "
                f"{format_bytes(self._memory)}, because {why_not(fit, there.subject.footprint)}.",
                advice=f"The smallest memory that would do is {exact_size(fit.minimum)}; with a shorter context "
                f"(now {self.context} tokens) or --dense-scheme int8 it is less.",
                budget=self._memory,
                minimum=fit.minimum,
            )

    def _check_fewer(self, bits: float) -> None:
        if bits >= self._native_bits:
            raise UsageError(
                f"{self._native.name} has {self._native_bits:g} bits per weight: {bits:g} are no fewer.",
                advice="Ask for fewer, or leave --bits out.",
                got=bits,
            )

    def _sizing(
        self,
        aim: Aim,
        about: float,
        room: int,
        share: float,
        reason: str,
        *,
        bits: float | None = None,
        expert_bytes: int | None = None,
        candidates: tuple[Candidate, ...] = (),
    ) -> Sizing:
        contents, subject = self._asked.contents, self._base.subject
        experts = expert_bytes or int(about * subject.footprint.experts / subject.bits)
        return Sizing(
            aim=aim,
            bits=bits,
            expert_bytes=expert_bytes,
            about_bits=round(about, 2),
            room=room,
            share=share,
            reason=reason,
            candidates=candidates,
            store_nbytes=contents.report.disk_nbytes - contents.footprint.experts + experts,
        )

    def _bits_of(self, nbytes: int) -> float:
        """Bits per weight if the records of all experts take so many bytes."""
        return self._base.subject.bits * nbytes / max(1, self._base.subject.footprint.experts)

    @property
    def _native_bits(self) -> float:
        return Subject.of(self._native.contents).bits

    def _scaled(self, bits: float) -> Subject:
        return self._base.subject.with_experts_scaled(bits / self._base.subject.bits)

    def _profiled(self, profile: str | Path, domains: Sequence[str], pruned: Path | None) -> HitRates:
        asked = self._native if pruned is None else open_asked(pruned)
        try:
            return by_profile(asked, profile, domains, self._base.subject, DEFAULT_POLICY)
        except UsageError:
            return self._base.hit_rates  # it knows too little of some domain, which says nothing about memory

    def _pruned(self, forecast: Forecast) -> Forecast:
        """The same with the experts that are left."""
        share = self._kept.components.get(forecast.subject.component, 1.0)
        subject = forecast.subject.with_experts_kept(share, self._kept.every)
        return replace(forecast, subject=subject, hit_rates=without_text(subject, DEFAULT_POLICY))

    def _forecast(self, asked: Asked) -> Forecast:
        subject = Subject.of(asked.contents)
        return Forecast(
            subject=subject,
            hit_rates=without_text(subject, DEFAULT_POLICY),
            context=self.context,
            prompt_tokens=PLANNED_PROMPT_TOKENS,
            answer_tokens=PLANNED_ANSWER_TOKENS,
            machine=None,
            process=self._process,
        )
