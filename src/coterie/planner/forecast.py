"""One model on one machine: what any budget would give of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from coterie.eviction.replay import knee
from coterie.inspection.what_fits import MemoryFit, memory_fit
from coterie.plan.budget import least_that
from coterie.planner.hit_rates import HitRate, HitRates
from coterie.planner.machine import DiskSpeed, Machine
from coterie.planner.ranges import Range
from coterie.planner.report import Expected, Gain, Knee, Speed
from coterie.planner.speed import decode_timing, limit_of, prompt_timing
from coterie.planner.subject import Subject

_GIB = 2**30
_MOST_CONTEXT = 2**20
_FEWER = 2
"""Experts per token that are left out in what is said about fewer of them."""
_KNEE_POINTS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What is needed to answer for any budget.

    Attributes:
        subject: The model.
        hit_rates: The forecast of hits.
        context: Tokens that budgets provide for.
        prompt_tokens: Tokens of a prompt.
        answer_tokens: Tokens of an answer.
        machine: None if it was not measured.
        process: Bytes that the process takes without weights. It is looked at once, before the machine is measured:
            what that takes is not the model's, and all budgets are compared by the same figure.
    """

    subject: Subject
    hit_rates: HitRates
    context: int
    prompt_tokens: int
    answer_tokens: int
    machine: Machine | None
    process: int

    def fit(self, memory: int, *, context: int | None = None) -> MemoryFit:
        """What a budget would hold."""
        return memory_fit(
            memory,
            self.subject.footprint,
            context=self.context if context is None else context,
            record_sizes=self.subject.records,
            working_set_nbytes=int(self.subject.working_set),
            process=self.process,
        )

    def share(self, fit: MemoryFit) -> float:
        """Share of the component's experts that fits while text is written."""
        total = self.subject.expert_nbytes
        return min(1.0, fit.expert_nbytes / total) if total else 1.0

    def hits(self, share: float) -> HitRate:
        """The hit rate if a share of the experts fits."""
        return self.hit_rates.at(share, top_k=self.subject.top_k)

    def speed(self, share: float) -> Speed | None:
        """How fast the model would run if a share of the experts fits; None if that was not measured."""
        machine = self.machine
        if machine is None or machine.disk is None or not machine.knows(self.subject.precisions):
            return None
        every = Range(low=1.0, expected=1.0, high=1.0)
        token = decode_timing(self.subject, machine, machine.disk, self.hits(share).miss)
        cold = decode_timing(self.subject, machine, machine.disk, every)
        prompt = prompt_timing(self.subject, machine, machine.disk, tokens=self.prompt_tokens, share=share)
        answer = self.answer_tokens
        tight = share < 1 and share * self.subject.expert_nbytes < self.subject.working_set
        return Speed(
            tokens_per_second=token.total.map(_inverse),
            cold_tokens_per_second=cold.total.map(_inverse),
            first_token_s=prompt.total,
            answer_s=Range(
                low=prompt.total.low + answer * token.total.low,
                expected=prompt.total.expected + answer * token.total.expected,
                high=prompt.total.high + answer * token.total.high,
            ),
            limit="memory" if tight else limit_of(self.subject, machine, token),
        )

    def with_room_for(self, nbytes: int) -> Expected:
        """What to expect where experts may take so many bytes in memory."""
        total = self.subject.expert_nbytes
        share = min(1.0, nbytes / total) if total else 1.0
        hits = self.hits(share)
        return Expected(
            share=share,
            hit_rate=hits,
            read_per_token=hits.miss.map(lambda miss: miss * self.subject.working_set),
            speed=self.speed(share),
        )

    def gains(self, memory: int, share: float) -> tuple[Gain, ...]:
        """What changes would buy under a budget in which the model runs."""
        now = self.speed(share)
        machine = self.machine
        if now is None or machine is None or machine.disk is None:
            return ()
        subject = self.subject
        faster = DiskSpeed(path=machine.disk.path, random=2 * machine.disk.random, sequential=machine.disk.sequential)
        more = [("1 GiB more memory", self, self.share(self.fit(memory + _GIB)), "")]
        more.append(("a disk twice as fast", replace(self, machine=replace(machine, disk=faster)), share, ""))
        if subject.bits > _FEWER:
            smaller = replace(self, subject=subject.with_experts_scaled((subject.bits - 1) / subject.bits))
            note = (
                f"experts in {subject.bits - 1:.1f} instead of {subject.bits:.1f} bits per weight; changes the output"
            )
            more.append(("one bit less", smaller, smaller.share(smaller.fit(memory)), note))
        if subject.top_k > _FEWER:
            fewer = replace(self, subject=replace(subject, top_k=subject.top_k - _FEWER))
            note = f"--experts-per-token {subject.top_k - _FEWER:.0f} changes the output"
            more.append((f"{_FEWER} experts per token fewer", fewer, share, note))
        found = []
        for change, changed, then, note in more:
            speed = changed.speed(then)
            assert speed is not None  # the machine was measured
            tokens = speed.tokens_per_second
            ratio = tokens.expected / now.tokens_per_second.expected
            found.append(Gain(change=change, tokens_per_second=tokens, ratio=ratio, note=note))
        return tuple(found)

    def largest_context(self, memory: int, longest: int | None) -> int:
        """The longest context with which the model runs in a budget; 0 if there is none.

        Args:
            memory: The budget in bytes.
            longest: Tokens that the model was made for, if that is known.
        """
        low, high = 0, (longest or _MOST_CONTEXT) + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.fit(memory, context=middle).enough else (low, middle)
        return low

    def all_experts(self) -> int:
        """The least budget, in whole MiB, in which all experts of the component stay once they were used."""
        return self.memory_for(1.0)

    def memory_for(self, share: float) -> int:
        """The least budget, in whole MiB, in which the model runs and such a share of the component's experts fits."""

        def suffices(budget: int) -> bool:
            fit = self.fit(budget)
            return fit.enough and self.share(fit) >= share

        return least_that(suffices)

    def knee(self, most: int) -> Knee | None:
        """Where more memory begins to add fewer hits; None if it does not, or all experts fit in the smallest budget.

        Args:
            most: The budget in which all experts fit.
        """
        least = self.fit(1).minimum
        if most <= least:
            return None
        budgets = [least + (most - least) * point // (_KNEE_POINTS - 1) for point in range(_KNEE_POINTS)]
        shares = [self.share(self.fit(budget)) for budget in budgets]
        rates = [self.hits(share).rate.expected for share in shares]
        index = knee(list(zip(budgets, rates, strict=True)))
        return None if index is None else Knee(memory=budgets[index], share=shares[index], hit_rate=rates[index])


def _inverse(seconds: float) -> float:
    return 1 / seconds
