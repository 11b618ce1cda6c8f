"""``model.coterie``: what a streamed model has beyond a stock one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from coterie.cache import ExpertCache
from coterie.engine.fetching import FetchCounts
from coterie.engine.lending import Lending
from coterie.engine.memory import logits_room
from coterie.engine.parts import Parts
from coterie.engine.promises import release
from coterie.engine.recording import TokenRecorder, TraceRecorder
from coterie.engine.source import ModelSource
from coterie.engine.statistics import STATS_SCHEMA_VERSION, ModelStats, bank_statistics
from coterie.engine.talker_experts import TalkerExperts
from coterie.engine.warming import Warming, modalities_of
from coterie.errors import MemoryBudgetError, UsageError
from coterie.files.replacing import replacing
from coterie.hf.banks import ExpertBank
from coterie.integration import Attachment
from coterie.passes import ExpertLimit, StreamedBank
from coterie.plan.budget import MemoryPlan
from coterie.plan.machine import process_memory
from coterie.spec import DEFAULT_DOMAIN, AdaptiveExperts, BankKey, Observer
from coterie.spec.defaults import Missing
from coterie.spec.opening import Opening, check_recording

if TYPE_CHECKING:
    from coterie.engine.adaptation import Adaptation
    from coterie.engine.profiling import ProfileRecorder
    from coterie.engine.salience import SalienceTrace
    from coterie.profiles import Usage
    from coterie.profiles.observations import Counting


class Runtime:
    """The streaming side of an open model, found at ``model.coterie``.

    Attributes:
        source: What the model was opened from.
        cache: The experts in memory.
        plan: How the memory budget was divided, or None if ``expert_memory`` sized the arena alone.
        max_context: Tokens (sequences × length) that there is room for; more are refused. None for no limit.
        working_set: Bytes of layers × experts per token; of the largest component, since no forward pass is of two.
        lending: What experts lend of their memory.
        parts: What is in memory only while a request needs it; None where everything stays.
        experts_per_token: Override of the routers' k, or None.
        drop_cold: Share of a token's highest gate weight below which decode steps leave out experts that are not in
            memory; None if they read them all.
        warming: What uses a profile, if the model was opened with one.
    """

    def __init__(
        self,
        *,
        source: ModelSource,
        attachment: Attachment,
        cache: ExpertCache,
        plan: MemoryPlan | None,
        max_context: int | None,
        working_set: int,
        lending: Lending,
        parts: Parts | None = None,
        experts_per_token: int | None = None,
        drop_cold: float | None = None,
    ) -> None:
        self.source = source
        self.cache = cache
        self.plan = plan
        self.max_context = max_context
        self.working_set = working_set
        self.lending = lending
        self.parts = parts
        self.experts_per_token = experts_per_token
        self.drop_cold = drop_cold
        self.warming: Warming | None = None
        self._attachment = attachment
        self._token_recorder: TokenRecorder | None = None
        self._kept_nbytes = 0
        self._talker_experts = TalkerExperts(cache, source.experts.keys(), working_set)

    @property
    def banks(self) -> list[BankKey]:
        """All banks of experts, in order."""
        return sorted(self._attachment.banks)

    @property
    def expert_banks(self) -> list[ExpertBank]:
        """Where each bank is in the model, and what its experts are made of."""
        return [streamed.bank for streamed in self._attachment.banks.values()]

    @property
    def streamed_banks(self) -> Mapping[BankKey, StreamedBank]:
        """The banks at work, by key."""
        return self._attachment.banks

    @property
    def missing(self) -> Missing | None:
        """What is done about experts that are not there; None if all are."""
        return self._attachment.missing

    def warm_with(self, usage: Usage, opening: Opening) -> None:
        """Begins to use a profile."""
        experts = self.source.experts
        self.warming = Warming(
            usage,
            self.cache,
            opening,
            nbytes={key: experts.layout(key).nbytes for key in experts.keys()},
            working_set=self.working_set,
            observers=(self.add_observer, self.remove_observer),
        )

    def expect_request(self, inputs: Iterable[str], *, speech: bool = False) -> None:
        """Says what comes next, for a profile to be used well; without a profile it does nothing.

        ``coterie generate`` and ``coterie chat`` do it by themselves; do it before ``model.generate(**inputs)``.

        Args:
            inputs: Names of the model's inputs, or the inputs by name.
            speech: Whether an answer in speech is wanted.
        """
        if self.warming is not None:
            self.warming.expect(modalities_of(inputs) | ({"speech"} if speech else set()))

    def watch_passes(self) -> None:
        """From now on what only some passes need may leave memory when others begin."""
        begins = [] if self.parts is None else [self.parts.pass_begins]
        if self._talker_experts.any:
            begins.append(self._talker_experts.pass_begins)
        for clock in self._attachment.clocks.values():
            clock.on_begin = tuple(begins)

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Inside, what speaks stays in memory once it has come, its experts too, whatever is computed beside it."""
        with nullcontext() if self.parts is None else self.parts.hold("speaking"), self._talker_experts.stay():
            yield

    def stats(self) -> ModelStats:
        """What was asked for, found, read and waited for since the model was opened."""
        total, components, layers = bank_statistics(self._attachment.banks)
        cache = self.cache.stats()
        clocks = self._attachment.clocks
        fetching = self.source.fetching
        return ModelStats(
            schema_version=STATS_SCHEMA_VERSION,
            model=self.source.name,
            identity=self.source.identity,
            prefill_tokens={name: clock.tokens["prefill"] for name, clock in clocks.items()},
            decode_tokens={name: clock.tokens["decode"] for name, clock in clocks.items()},
            total=total,
            components=components,
            layers=layers,
            capacity=cache.capacity,
            resident_bytes=cache.resident_bytes,
            resident_experts=cache.resident_count,
            total_expert_bytes=self.cache.total_bytes,
            minimum=self.cache.minimum,
            working_set=self.working_set,
            reads_at_once=self.cache.reads_at_once,
            prefetch_hinted=cache.prefetch_hinted,
            prefetch_issued=cache.prefetch_issued,
            prefetch_used=cache.prefetch_used,
            prefetch_in_time=cache.prefetch_in_time,
            prefetch_wasted=cache.prefetch_wasted,
            prefetch_bytes=cache.prefetch_bytes,
            announced_issued=cache.announced_issued,
            announced_used=cache.announced_used,
            warmed=cache.warmed,
            warmed_used=cache.warmed_used,
            warmed_bytes=cache.warmed_bytes,
            warmed_for=None if self.warming is None else self.warming.domain,
            pinned=cache.pinned,
            prefetch_verdicts={name: ahead.verdict for name, ahead in self._attachment.ahead.items()},
            fetched=FetchCounts() if fetching is None else fetching.counts(),
            parts={} if self.parts is None else self.parts.stats(),
            tokens=None if self._token_recorder is None else self._token_recorder.tokens(),
        )

    def resident(self) -> dict[BankKey, list[int]]:
        """Bank → ids of its experts that are in memory now. Looking keeps nobody waiting."""
        views = {key: bank.view for key, bank in sorted(self._attachment.banks.items())}
        return {key: [] if view is None else view.resident() for key, view in views.items()}

    def write_stats(self, path: str | Path) -> None:
        """Writes :meth:`stats` as JSON."""
        with replacing(path) as partial:
            partial.write_text(json.dumps(self.stats().to_dict(), indent=2) + "\n", encoding="utf-8")

    def add_observer(self, observer: Observer) -> None:
        """Tells ``observer`` about every event from now on."""
        self._attachment.observers.append(observer)

    def remove_observer(self, observer: Observer) -> None:
        """Stops telling it; harmless if it was not told."""
        if observer in self._attachment.observers:
            self._attachment.observers.remove(observer)

    def record_tokens(self) -> None:
        """From now on keeps every token's experts and gate weights, to be had from :meth:`stats`."""
        if self._token_recorder is None:
            self._token_recorder = TokenRecorder()
            self.add_observer(self._token_recorder)

    @contextmanager
    def record_trace(self, path: str | Path) -> Iterator[TraceRecorder]:
        """Records the routing of what runs inside the context and writes it at the end, also after an error.

        Raises:
            UsageError: If nothing ran, for another ending than ``.npz`` and ``.jsonl``, or with ``drop_cold``.
        """
        check_recording(self.drop_cold, "trace")
        recorder = TraceRecorder(
            model=self.source.name, identity=self.source.identity, num_experts=dict(self.source.num_experts)
        )
        self.add_observer(recorder)
        try:
            yield recorder
        except BaseException:
            # An error before the first layer leaves nothing to save, and saying so would hide the error.
            if recorder.recorded:
                recorder.save(path)
            raise
        else:
            recorder.save(path)
        finally:
            self.remove_observer(recorder)

    @contextmanager
    def record_profile(
        self,
        where: str | Path,
        *,
        domain: str = DEFAULT_DOMAIN,
        label: str = "",
        contributions: bool = True,
        vocabulary: int = 64,
        resume: bool = False,
        several_models: bool = False,
        segment_tokens: int | None = None,
    ) -> Iterator[ProfileRecorder]:
        """Records what every expert does, of all that runs inside the context, into a profile.

        The database is written by a thread of its own: however slow it is, the model does not wait for it before the
        end of the context. What is recorded until then takes some tens of MiB.

        Args:
            where: A file, which is made if it is not there, or ``postgresql://USER@HOST/DATABASE``.
            domain: Name of what the model is working on; the recorder's ``domain`` can be set to another one later.
            label: Free text that names the run.
            contributions: Measure what experts add to their layers' output, too, for REAP scores and trust.
            vocabulary: Tokens kept per expert; 0 counts no token ids.
            resume: Go on with the latest run of this model under this label, if there is one.
            several_models: Allow a profile that is about other models, too.
            segment_tokens: Tokens after which a segment ends. Default: 1,024. Fewer where little is recorded of a
                modality or domain: what is said of it takes four segments at least.

        Raises:
            UsageError: If the domain's name cannot be, a run to go on with had other banks, or with ``drop_cold``.
            ProfileIdentityError: If the profile is about another model.
            ProfileError: If it cannot be opened, made or written; at the end of the context it says what is lost.
        """
        # Here, because most who open a model record nothing.
        from coterie.engine.profile_runs import bank_shapes, recording_run
        from coterie.profiles.facts import check_group

        check_recording(self.drop_cold, "profile")
        check_group("text", domain, "prompt")
        shapes = bank_shapes(self.expert_banks, self.experts_per_token)
        with (
            recording_run(
                where,
                self.source,
                shapes,
                label=label,
                resume=resume,
                several_models=several_models,
                vocabulary=vocabulary,
                segment_tokens=segment_tokens,
            ) as recording,
            self.count_choices(recording, domain=domain, contributions=contributions) as recorder,
        ):
            yield recorder

    @contextmanager
    def count_choices(
        self, counting: Counting, *, domain: str, contributions: bool = True, boundaries: bool = True
    ) -> Iterator[ProfileRecorder]:
        """Tells counters what every expert does, of all that runs inside the context.

        Args:
            counting: The counters; or observations, which are counted later.
            domain: As for :class:`~coterie.engine.profiling.ProfileRecorder`.
            contributions: Likewise.
            boundaries: Likewise.

        Raises:
            UsageError: If the domain's name cannot be, or with ``drop_cold``.
        """
        # Here, because most who open a model count nothing.
        from coterie.engine.profiling import ProfileRecorder
        from coterie.hf.token_roles import token_roles

        check_recording(self.drop_cold, "profile")
        roles = {bank.component: token_roles(self.source.config, bank.component) for bank in self.banks}
        recorder = ProfileRecorder(counting, roles, domain=domain, contributions=contributions, boundaries=boundaries)
        self.add_observer(recorder)
        try:
            yield recorder
        finally:
            self.remove_observer(recorder)

    @contextmanager
    def salience(self, *, reward: float = 0.5, seed: int = 0) -> Iterator[SalienceTrace]:
        """Scores every token that is computed inside the context: surprise, novelty, arousal, reward and conflict.

        :mod:`coterie.profiles.salience` has the formulas. Nothing changes in what the model computes. Sequences of a
        batch are scored against one another's tokens; beams of a beam search are not followed.

        Args:
            reward: What the tokens are worth, from 0 to 1; the trace's ``reward`` can be set to another value later.
            seed: Of the draws by which recent routing is remembered.

        Raises:
            UsageError: If the reward is out of range.
        """
        # Here, because most who open a model ask for none.
        from coterie.engine.salience import SalienceTrace

        trace = SalienceTrace(model=self.source.name, identity=self.source.identity, experts=self._widths(), seed=seed)
        trace.reward = reward
        self.add_observer(trace.meter)
        try:
            yield trace
        finally:
            self.remove_observer(trace.meter)

    @contextmanager
    def adapt_experts(self, how: str | AdaptiveExperts, *, reward: float = 0.5, seed: int = 0) -> Iterator[Adaptation]:
        """Leaves out some of the experts that routers choose, of all that runs inside the context. Changes the output.

        The remaining gate weights of a token are scaled so that their sum is unchanged. It comes after what ``missing``
        does about absent experts. docs/salience.md says what it costs and what it saves, and what is cheaper.

        Args:
            how: ``wake``, ``focus`` or ``crisis``, by the salience of the token before; ``gate:SHARE`` for those whose
                gate weight is below a share of the token's highest; or :class:`coterie.spec.AdaptiveExperts`.
            reward: As for :meth:`salience`.
            seed: Likewise.

        Raises:
            UsageError: If there is no such way, a number is out of range, or another such context is open.
        """
        from coterie.engine.adaptation import Adaptation

        choices: dict[str, int] = {}
        for bank in self.expert_banks:
            k = self.experts_per_token or bank.choices or 1
            choices[bank.key.component] = max(k, choices.get(bank.key.component, 1))
        settings = AdaptiveExperts.of(how, max(choices.values()))
        adaptation = Adaptation(settings, experts=self._widths(), choices=choices, seed=seed)
        adaptation.reward = reward
        with self.limit_experts(adaptation):
            self.add_observer(adaptation)
            try:
                yield adaptation
            finally:
                self.remove_observer(adaptation)

    @contextmanager
    def limit_experts(self, limit: ExpertLimit) -> Iterator[None]:
        """Asks ``limit`` which of the experts that routers choose are left out, of all that runs inside the context.

        Raises:
            UsageError: If another limit is asked already.
        """
        clocks = list(self._attachment.clocks.values())
        if any(clock.limit is not None for clock in clocks):
            raise UsageError("The number of experts is limited already.", advice="Leave the other context first.")
        for clock in clocks:
            clock.limit = limit
        try:
            yield
        finally:
            for clock in clocks:
                clock.limit = None

    def _widths(self) -> dict[BankKey, int]:
        """Bank → how many experts a router can choose among, identity experts included."""
        return {bank.key: bank.num_experts + bank.identities for bank in self.expert_banks}

    def keep_for_logits(self, nbytes: int) -> None:
        """Says that memory was kept free outside the budget for logits of all positions of a forward pass.

        The budget provides for those of the last position, and for others as far as activations leave room.

        Args:
            nbytes: How much, for all that computes at one time.
        """
        if self.plan is not None:
            room = logits_room(self.source, beside=nbytes)
            for clock in self._attachment.clocks.values():
                clock.provide(self.plan.max_context, room)

    def lend_context(self, tokens: int, *, kept_nbytes: int = 0) -> None:
        """Says that caches may hold more tokens for now than the budget was made for: whoever says so has made room.

        Args:
            tokens: How many more.
            kept_nbytes: Bytes of what the budget has for a context that sequences may still come to take: nothing else
                may take them meanwhile.
        """
        self._kept_nbytes = kept_nbytes
        for clock in self._attachment.clocks.values():
            clock.lend(tokens)

    def unused_nbytes(self) -> int:
        """Bytes that this model was promised and does not hold yet: of its arena, and of a context."""
        stats = self.cache.stats()
        free = stats.capacity - stats.committed_bytes + self.lending.spare
        plan = self.plan
        return free if plan is None else free + plan.kv_cache + plan.activations + plan.io_buffers

    def spare_nbytes(self) -> int | None:
        """Bytes of the budget that nothing holds, and that the arena will not take; None if there is no budget.

        What a context and its activations take is among them: a picture is decoded before they are there.
        """
        if self.plan is None:
            return None
        stats = self.cache.stats()
        arena = stats.capacity - stats.committed_bytes + self.lending.spare
        held = process_memory(exact=True).total + arena + self.plan.io_buffers + self._kept_nbytes
        return self.plan.budget - held

    @contextmanager
    def lends_for_inputs(self) -> Iterator[None]:
        """Inside, experts lend what encoders take afterwards, or as much of it as there is.

        A picture or sound is decoded in it: what encodes it has not come by then, and takes it next.
        """
        lent = 0 if self.plan is None else self.plan.lent.get("encoding", 0)
        if self.parts is not None and self.lending.free < lent:
            self.parts.let_idle_go()
        nbytes, whose = max(0, min(lent, self.lending.free)), object()
        # Others may take it meanwhile: there is as much as there is. And the model may be closed.
        with suppress(MemoryBudgetError, UsageError):
            self.lending.lend(whose, nbytes)
        try:
            yield
        finally:
            with suppress(UsageError):
                self.lending.lend(whose, 0)

    @property
    def limits_experts(self) -> bool:
        """Whether some of the experts that routers choose are left out; see :meth:`limit_experts`."""
        return any(clock.limit is not None for clock in self._attachment.clocks.values())

    @property
    def most_rows(self) -> int | None:
        """Sequences whose experts of one step all have room beside each other, where the cache depends on that.

        With ``lru`` and ``lfu`` a step that asks for more finds nothing of it again in the next one. None for
        any number.
        """
        cache = self.cache
        room, share = cache.capacity / cache.total_bytes, self.working_set / cache.total_bytes
        if room >= 1 or not cache.scans_badly or not 0 < share < 1:
            return None
        # Of rows that choose independently, a step asks for 1 − (1 − share)^rows of the experts; of related ones, less.
        return max(1, int(math.log(1 - room) / math.log(1 - share)))

    def close(self) -> None:
        """Frees the experts' memory and closes files. The model cannot run afterwards. Harmless when repeated.

        With ``missing="fetch"`` what was fetched and is not in the store yet is added to it first.
        """
        release(self)
        self.cache.close()
        self.source.close()
