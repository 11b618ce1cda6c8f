"""Opens a transformers model whose experts are read when the router picks them."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from coterie import native
from coterie.cache import ExpertCache
from coterie.engine.alteration import Alteration
from coterie.engine.caller import warn_caller
from coterie.engine.closing import close_by_with
from coterie.engine.disk_tuning import Reading, reading_for
from coterie.engine.lending import Lending
from coterie.engine.memory import arena_nbytes, early_memory, goes_by_phase, logits_room, plan_for
from coterie.engine.model import build_model
from coterie.engine.parts import Parts
from coterie.engine.promises import promise
from coterie.engine.release_check import check_release
from coterie.engine.runtime import Runtime
from coterie.engine.source import ModelSource, open_source, with_fetching
from coterie.engine.warming import check_profile_use, eviction_policy, read_usage
from coterie.errors import CoverageError
from coterie.hf.context import default_context, model_context
from coterie.hf.releases import moved
from coterie.hf.talker import writing_part
from coterie.integration import Attachment, install_guards, register, strip_plugin_marks
from coterie.passes import let_go_after_failure, process_neighbours
from coterie.plan.compiled import bound_compiled_kernels, leave_kernels_unbounded
from coterie.plan.cpu import usable_cores
from coterie.plan.heap import settle_heap
from coterie.plan.machine import default_memory_budget, memory_limits
from coterie.spec import format_bytes, parse_bytes
from coterie.spec.opening import Opening

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOADING = threading.Lock()


def open_streamed(path: str | Path, opening: Opening, alteration: Alteration | None = None) -> PreTrainedModel:
    """Opens a model as :func:`coterie.load` does.

    Args:
        path: The model.
        opening: How.
        alteration: What it has instead of what is stored.

    Raises:
        CoterieError: As there.
    """
    opening.check()
    check_profile_use(opening)
    process_neighbours().begin()
    # One at a time: what is free is measured and then promised, and transformers changes torch's default dtype.
    with _LOADING, moved("coterie.engine.opening"):
        check_release()
        model = _open(path, opening, alteration)
    if opening.threads is not None:
        _warn_many(opening.threads)
        torch.set_num_threads(opening.threads)
    busy = process_neighbours().warning()
    if busy is not None:
        warn_caller(busy)
    return model


def _open(path: str | Path, opening: Opening, alteration: Alteration | None) -> PreTrainedModel:
    source = open_source(
        path,
        component=opening.component,
        revision=opening.revision,
        offline=opening.offline,
        fetch=opening.missing == "fetch",
        max_rate=opening.max_rate,
    )
    if alteration is not None:
        source = alteration.of(source)
    if opening.missing == "fetch":
        source = with_fetching(source, opening.source, offline=opening.offline, max_rate=opening.max_rate)
    _check_coverage(source, opening.missing)
    usage = read_usage(opening, source)
    budget = _budget(opening)
    context = default_context(source.config) if opening.max_context is None else opening.max_context
    _warn_long(context, model_context(source.config))
    room, parts, first = None, None, None
    if opening.memory is not None and budget is not None:
        _warn_beyond(budget)
    if budget is None:
        leave_kernels_unbounded()
    else:
        # Modules refer to each other: those of a model that was let go of would count as part of this one.
        gc.collect()
        # A first look, so that a budget that cannot do is refused before gigabytes are read.
        if goes_by_phase(source, budget, context, opening.expert_memory):
            parts = Parts(source.footprint, source.dense, source.encoded, source.dtype, source.table, source.component)
        first = plan_for(source, budget, context, loaded=False, by_phase=parts is not None)
        # What experts have no use for is there, too.
        room = first.arena + first.spare(first.arena) - source.footprint.least_experts
        bound_compiled_kernels(budget)
        settle_heap()
    register()
    attachment = Attachment(
        num_experts=source.num_experts,
        present=source.present,
        missing=None if source.complete else opening.missing,
        experts_per_token=opening.experts_per_token,
        prefetch=opening.prefetch,
        linears=None if source.linears is None else source.linears.layers(),
    )
    # Before gigabytes are read, it is refused, too, if expert memory was asked for that cannot be.
    with early_memory(source.footprint, first, opening.expert_memory) or nullcontext() as early:
        model = build_model(source, attachment, room, parts)
    plan = None
    if budget is not None:
        gc.collect()  # what loading left behind is not part of the model
        found = 0 if early is None else early.found
        plan = plan_for(source, budget, context, loaded=True, by_phase=parts is not None, found=found)
    capacity = arena_nbytes(source.footprint, plan, opening.expert_memory)
    working_set = _working_set(source, attachment, opening.experts_per_token)
    reading = Reading() if source.kind == "checkpoint" else reading_for(source.experts, memory=capacity)
    cache = ExpertCache(
        source.experts,
        capacity=capacity,
        eviction=eviction_policy(opening, usage),
        verify_reads=opening.verify_reads,
        read_threads=reading.at_once,
        read_nbytes=reading.read_nbytes,
        early=early,
    )
    process_neighbours().heed(cache)
    if cache.capacity < cache.total_bytes:
        _warn_small(capacity, working_set)
    if opening.drop_cold is not None:
        _warn_single(attachment, opening)
    if source.quantised and native.library() is None:
        _warn_without_library(source)
    try:
        attachment.connect(cache, source.experts, opening.drop_cold)
    except BaseException:
        cache.close()
        raise
    lending = Lending(cache, 0 if plan is None else min(plan.spare(cache.capacity), plan.most_lent))
    if parts is not None and plan is not None:
        parts.connect(lending, plan)
    limit = opening.max_context if plan is None else context
    for clock in attachment.clocks.values():
        clock.provide(limit, None if plan is None else logits_room(source))
    strip_plugin_marks(model)
    install_guards(model, attachment.removed)
    if model.can_generate():
        let_go_after_failure(model)
    runtime = Runtime(
        source=source,
        attachment=attachment,
        cache=cache,
        plan=plan,
        max_context=limit,
        working_set=working_set,
        lending=lending,
        parts=parts,
        experts_per_token=opening.experts_per_token,
        drop_cold=opening.drop_cold,
    )
    runtime.watch_passes()
    promise(runtime)
    if usage is not None:
        runtime.warm_with(usage, opening)
    for part in (model, writing_part(model)):
        part.__dict__["coterie"] = runtime
    close_by_with(model)
    return model


def _check_coverage(source: ModelSource, missing: str | None) -> None:
    if source.complete:
        return
    have = sum(len(ids) for ids in source.present.values())
    want = sum(source.num_experts.values())
    if missing is None:
        shares = [len(ids) / source.num_experts[bank] for bank, ids in source.present.items()]
        percents = dict.fromkeys((f"{min(shares):.0%}", f"{max(shares):.0%}"))
        raise CoverageError(
            f"{source.name} holds {have} of {want} experts ({' to '.join(percents)} of each layer's).",
            advice="Say what to do when an absent one is needed: missing='mask' routes to the best one that is there, "
            "'drop' leaves it out, 'nearest' lets the most similar one stand in, 'fetch' reads it from the checkpoint, "
            "'error' stops. Or extract the rest.",
            present=have,
            total=want,
        )
    if have == 0 and missing != "drop":
        raise CoverageError(f"{source.name} holds no expert at all.", advice="Only missing='drop' opens it.")


def _budget(opening: Opening) -> int | None:
    if opening.memory is not None:
        return parse_bytes(opening.memory, what="memory")
    return None if opening.expert_memory is not None else default_memory_budget()


def _working_set(source: ModelSource, attachment: Attachment, experts_per_token: int | None) -> int:
    """That of the largest component: no forward pass is of two."""
    totals: Counter[str] = Counter()
    for key, bank in attachment.banks.items():
        top_k = experts_per_token or bank.bank.top_k or 1
        totals[key.component] += min(top_k, len(source.present[key])) * source.record_nbytes.get(key, 0)
    return max(totals.values(), default=0)


def _warn_many(threads: int) -> None:
    cores = usable_cores()
    if threads > cores:
        warn_caller(
            f"{threads} threads wait for each other on {cores} cores: more threads than cores make a model slower.",
        )


def _warn_long(max_context: int, longest: int | None) -> None:
    if longest is not None and max_context > longest:
        warn_caller(
            f"max_context={max_context} makes room for more tokens than the {longest} that the model was made for; "
            "that is of use for batches only.",
        )


def _warn_without_library(source: ModelSource) -> None:
    warn_caller(
        f"{source.name} is quantised, and the native library that computes with it is not there: torch alone is many "
        f"times slower. `coterie doctor` says why it is missing.",
    )


def _warn_beyond(budget: int) -> None:
    limits = memory_limits()
    cgroup = None if limits.cgroup is None else limits.cgroup.limit
    most = limits.total if cgroup is None else min(cgroup, limits.total)
    if budget > most:
        whose = "this machine" if most == limits.total else f"the cgroup {limits.cgroup.path}"  # type: ignore[union-attr]
        warn_caller(
            f"memory={format_bytes(budget)} is more than the {format_bytes(most)} that {whose} has: what does not fit "
            "ends in swapping, or the process is killed. "
            f"{format_bytes(default_memory_budget(limits))} could be used now.",
        )


def _warn_single(attachment: Attachment, opening: Opening) -> None:
    most = max((opening.experts_per_token or bank.bank.choices or 1) for bank in attachment.banks.values())
    if most == 1:
        warn_caller(
            f"drop_cold={opening.drop_cold} has no effect: the model uses one expert per token, which always stays."
        )


def _warn_small(capacity: int, working_set: int) -> None:
    if capacity < 2 * working_set:
        warn_caller(
            f"The experts have {format_bytes(capacity)}, less than twice the {format_bytes(working_set)} that one "
            f"token uses: most will be read again for every token. {format_bytes(2 * working_set)} or more is advised.",
        )
