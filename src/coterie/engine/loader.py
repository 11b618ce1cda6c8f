"""``coterie.load``: a transformers model whose experts are read when the router picks them."""

from __future__ import annotations

import gc
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch

from coterie import native
from coterie.cache import ExpertCache, minimum_capacity
from coterie.engine.closing import close_by_with
from coterie.engine.foreign_options import check_others
from coterie.engine.memory import arena_nbytes, expert_memory_nbytes, plan_for
from coterie.engine.model import build_model
from coterie.engine.promises import promise
from coterie.engine.reading import DEFAULT_AT_ONCE, Reading, reading_for
from coterie.engine.release_check import check_release
from coterie.engine.runtime import Runtime
from coterie.engine.source import ModelSource, open_source, with_fetching
from coterie.engine.warming import AUTO, ProfileUse
from coterie.errors import CoverageError, UnsupportedError, UsageError
from coterie.hf.context import default_context, model_context
from coterie.hf.releases import moved
from coterie.integration import (
    Attachment,
    Missing,
    check_missing,
    forget,
    install_guards,
    register,
)
from coterie.passes import let_go_after_failure, process_neighbours
from coterie.plan.compiled import bound_compiled_kernels, leave_kernels_unbounded
from coterie.plan.cpu import usable_cores
from coterie.plan.heap import share_one_heap
from coterie.plan.machine import default_memory_budget, memory_limits
from coterie.spec import DEFAULT_POLICY, DEFAULT_PREFETCH, Prefetch, format_bytes, parse_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOADING = threading.Lock()


def load(
    path: str | Path,
    *,
    memory: str | int | None = None,
    expert_memory: str | int | None = None,
    component: str | None = None,
    missing: Missing | None = None,
    source: str | Path | None = None,
    eviction: str = DEFAULT_POLICY,
    prefetch: Prefetch = DEFAULT_PREFETCH,
    profile: str | Path | None = None,
    warm: str | None = AUTO,
    pin: str | int | None = None,
    experts_per_token: int | None = None,
    max_context: int | None = None,
    verify_reads: bool = False,
    revision: str | None = None,
    offline: bool = False,
    threads: int | None = None,
    device: Literal["cpu"] = "cpu",
    **others: object,
) -> PreTrainedModel:
    """Opens a model whose experts are streamed.

    With a lossless store (or a checkpoint) and all experts present, its logits are bit-identical to those of stock
    transformers with ``experts_implementation="eager"``, at any memory budget, for the same prefill chunking and
    thread count.

    Args:
        path: A store (its path, or its name in ``coterie stores``), a checkpoint directory, a Hub id, or ``"bundled"``.
        memory: Ceiling for the whole process, such as ``"8GiB"``. Default: what the machine and the cgroup allow,
            less a margin. To keep it, torch's caches of compiled kernels are bounded through the environment where
            that does not bound them already (``LRU_CACHE_CAPACITY``, ``ONEDNN_PRIMITIVE_CACHE_CAPACITY``), and threads
            that begin from then on share one heap, unless ``MALLOC_ARENA_MAX`` is set.
        expert_memory: Sizes the experts' arena alone: bytes, ``"2GiB"``, or ``"25%"`` of the bytes of all experts.
            Without ``memory``, the rest of the process is then not bounded.
        component: ``"thinker"`` or ``"talker"`` of a whole model.
        missing: What to do about experts that are not in the store: ``"error"``, ``"mask"``, ``"drop"``,
            ``"nearest"``, or ``"fetch"``, which reads them from the checkpoint and adds them to the store. Default:
            a partial store does not open.
        source: With ``missing="fetch"``: the checkpoint that the store was made from, a directory or a Hub id. A
            store that was made from a repository of the Hub knows it.
        eviction: ``"markov"``, ``"lru"``, ``"lfu"``, ``"lfru"``, or, with ``profile``, ``"trust"``.
        prefetch: Whether the experts that the next layer will probably ask for are read while the disk would stand
            still: ``"on"``, ``"off"``, or ``"auto"``, which tries both and does it where steps are shorter for it. No
            choice changes the output.
        profile: A profile of the model (a file, or a PostgreSQL URL), which says what is worth having in memory.
        warm: With ``profile``: which experts are read while the disk has nothing else to do, from now on, until seven
            eighths of the expert memory are full. ``"auto"``: those that requests use most, going by the modalities of
            a request's inputs and then by the domain that its prompt is most like. The name of a domain: those of that.
            None: none. No choice changes the output.
        pin: With ``profile``: of these, how much stays in memory: bytes, ``"2GiB"``, or ``"25%"`` of the expert memory.
            One token's experts always find room beside them.
        experts_per_token: Overrides the routers' k; changes the output.
        max_context: Tokens (sequences × length) that the budget provides for; more are refused. Default: 4096, or less
            if the model was made for less; no limit if only ``expert_memory`` is given.
        verify_reads: Compare every expert read with its checksum (stores only).
        revision: Branch, tag or commit of a Hub repository.
        offline: Use only what is on this machine; never ask the Hub.
        threads: torch's intra-op threads, set for the whole process; default: unchanged.
        device: Only ``"cpu"``.
        others: None; options of ``from_pretrained`` are refused with what to do instead.

    Returns:
        A ``PreTrainedModel`` of the checkpoint's own class. ``model.coterie`` has ``stats()``, observers and traces. In
        a ``with`` block it is closed at the end.

    Raises:
        CoterieError: Its subclasses name what is wrong; see :mod:`coterie.errors`.
    """
    check_others(others, load)
    _check_arguments(
        device=device,
        missing=missing,
        source=source,
        prefetch=prefetch,
        expert_memory=expert_memory,
        threads=threads,
        max_context=max_context,
    )
    use = ProfileUse(profile=profile, warm=warm, pin=pin, eviction=eviction)
    use.check()
    process_neighbours().begin()
    # One at a time: what is free is measured and then promised, and transformers changes torch's default dtype.
    with _LOADING, moved("coterie.engine.loader"):
        check_release()
        model = _load(
            path,
            memory=memory,
            expert_memory=expert_memory,
            component=component,
            missing=missing,
            checkpoint=source,
            use=use,
            prefetch=prefetch,
            experts_per_token=experts_per_token,
            max_context=max_context,
            verify_reads=verify_reads,
            revision=revision,
            offline=offline,
        )
    if threads is not None:
        _warn_many(threads)
        torch.set_num_threads(threads)
    busy = process_neighbours().warning()
    if busy is not None:
        warnings.warn(busy, stacklevel=2)
    return model


def _load(
    path: str | Path,
    *,
    memory: str | int | None,
    expert_memory: str | int | None,
    component: str | None,
    missing: Missing | None,
    checkpoint: str | Path | None,
    use: ProfileUse,
    prefetch: Prefetch,
    experts_per_token: int | None,
    max_context: int | None,
    verify_reads: bool,
    revision: str | None,
    offline: bool,
) -> PreTrainedModel:
    source = open_source(path, component=component, revision=revision, offline=offline)
    if missing == "fetch":
        source = with_fetching(source, checkpoint, offline=offline)
    _check_coverage(source, missing)
    usage = use.read(source)
    minimum = minimum_capacity(source.experts)
    budget = _budget(memory, expert_memory)
    context = default_context(source.config) if max_context is None else max_context
    _warn_long(context, model_context(source.config))
    room = None
    if memory is not None and budget is not None:
        _warn_beyond(budget)
    if budget is None:
        leave_kernels_unbounded()
    else:
        # A first look, so that a budget that cannot do is refused before gigabytes are read.
        first = plan_for(source, budget, context, minimum, read_threads=DEFAULT_AT_ONCE, loaded=False)
        room = first.arena - minimum
        bound_compiled_kernels(budget)
        share_one_heap()
    register()
    attachment = Attachment(
        num_experts=source.num_experts,
        present=source.present,
        missing=None if source.complete else missing,
        experts_per_token=experts_per_token,
        prefetch=prefetch,
        linears=None if source.linears is None else source.linears.layers(),
    )
    model = build_model(source, attachment, room)
    plan = None
    if budget is not None:
        gc.collect()  # what loading left behind is not part of the model
        plan = plan_for(source, budget, context, minimum, read_threads=DEFAULT_AT_ONCE, loaded=True)
    capacity = arena_nbytes(source, plan, expert_memory, minimum)
    working_set = _working_set(source, attachment, experts_per_token)
    reading = Reading() if source.kind == "checkpoint" else reading_for(source.experts, memory=capacity)
    cache = ExpertCache(
        source.experts,
        capacity=capacity,
        eviction=use.policy(usage),
        verify_reads=verify_reads,
        read_threads=reading.at_once,
        read_nbytes=reading.read_nbytes,
    )
    if cache.capacity < cache.total_bytes:
        _warn_small(capacity, working_set)
    if source.quantised and native.library() is None:
        _warn_without_library(source)
    try:
        attachment.connect(cache, source.experts)
    except BaseException:
        cache.close()
        raise
    limit = max_context if plan is None else context
    for clock in attachment.clocks.values():
        clock.max_context = limit
    forget(model)
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
        experts_per_token=experts_per_token,
    )
    promise(runtime)
    if usage is not None:
        runtime.warm_with(usage, use)
    model.__dict__["coterie"] = runtime
    close_by_with(model)
    return model


def _check_arguments(
    *,
    device: str,
    missing: str | None,
    source: str | Path | None,
    prefetch: str,
    expert_memory: str | int | None,
    threads: int | None,
    max_context: int | None,
) -> None:
    if device != "cpu":
        raise UnsupportedError(
            f"device={device!r} is not supported.", advice='Only "cpu" has been run; leave device out.', device=device
        )
    check_missing(missing)
    if source is not None and missing != "fetch":
        raise UsageError(
            f"source={str(source)!r} says where absent experts are fetched from, but nothing is to be fetched.",
            advice="Add missing='fetch', or leave source out.",
            source=source,
        )
    if prefetch not in get_args(Prefetch):
        raise UsageError.unknown("setting of prefetch", prefetch, get_args(Prefetch))
    if expert_memory is not None:
        expert_memory_nbytes(expert_memory, 1)
    for name, value in (("threads", threads), ("max_context", max_context)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}.", got=value)


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


def _budget(memory: str | int | None, expert_memory: str | int | None) -> int | None:
    if memory is not None:
        return parse_bytes(memory, what="memory")
    return None if expert_memory is not None else default_memory_budget()


def _working_set(source: ModelSource, attachment: Attachment, experts_per_token: int | None) -> int:
    total = 0
    for key, bank in attachment.banks.items():
        top_k = experts_per_token or bank.bank.top_k or 1
        total += min(top_k, len(source.present[key])) * source.record_nbytes.get(key, 0)
    return total


def _warn_many(threads: int) -> None:
    cores = usable_cores()
    if threads > cores:
        warnings.warn(
            f"{threads} threads wait for each other on {cores} cores: more threads than cores make a model slower.",
            stacklevel=3,
        )


def _warn_long(max_context: int, longest: int | None) -> None:
    if longest is not None and max_context > longest:
        warnings.warn(
            f"max_context={max_context} makes room for more tokens than the {longest} that the model was made for; "
            "that is of use for batches only.",
            stacklevel=4,
        )


def _warn_without_library(source: ModelSource) -> None:
    warnings.warn(
        f"{source.name} is quantised, and the native library that computes with it is not there: torch alone is many "
        f"times slower. `coterie doctor` says why it is missing.",
        stacklevel=4,
    )


def _warn_beyond(budget: int) -> None:
    limits = memory_limits()
    cgroup = None if limits.cgroup is None else limits.cgroup.limit
    most = limits.total if cgroup is None else min(cgroup, limits.total)
    if budget > most:
        whose = "this machine" if most == limits.total else f"the cgroup {limits.cgroup.path}"  # type: ignore[union-attr]
        warnings.warn(
            f"memory={format_bytes(budget)} is more than the {format_bytes(most)} that {whose} has: what does not fit "
            "ends in swapping, or the process is killed. "
            f"{format_bytes(default_memory_budget(limits))} could be used now.",
            stacklevel=4,
        )


def _warn_small(capacity: int, working_set: int) -> None:
    if capacity < 2 * working_set:
        warnings.warn(
            f"The experts have {format_bytes(capacity)}, less than twice the {format_bytes(working_set)} that one "
            f"token uses: most will be read again for every token. {format_bytes(2 * working_set)} or more is advised.",
            stacklevel=4,
        )
