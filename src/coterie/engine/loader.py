"""``coterie.load``: what a user says about opening a model, and what each option means."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from coterie.engine.foreign_options import check_others
from coterie.engine.opening import open_streamed
from coterie.errors import UnsupportedError
from coterie.spec import DEFAULT_POLICY, DEFAULT_PREFETCH, DEFAULT_WARM, Missing, Prefetch
from coterie.spec.opening import Opening

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    warm: str | None = DEFAULT_WARM,
    pin: str | int | None = None,
    experts_per_token: int | None = None,
    drop_cold: float | None = None,
    max_context: int | None = None,
    verify_reads: bool = False,
    revision: str | None = None,
    offline: bool = False,
    max_rate: str | int | None = None,
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
            that does not bound them already (``LRU_CACHE_CAPACITY``, ``ONEDNN_PRIMITIVE_CACHE_CAPACITY``). With glibc,
            threads that begin from then on share one heap, and tensors of long prompts are not taken from it, unless
            ``MALLOC_ARENA_MAX``, ``MALLOC_MMAP_THRESHOLD_`` or ``MALLOC_TRIM_THRESHOLD_`` are set.
        expert_memory: Sizes the experts' arena alone: bytes, ``"2GiB"``, or ``"25%"`` of the bytes of all experts.
            Without ``memory``, the rest of the process is then not bounded.
        component: ``"thinker"`` or ``"talker"`` of a whole model.
        missing: What to do about experts that are not in the store: ``"error"``, ``"mask"``, ``"drop"``,
            ``"nearest"``, or ``"fetch"``, which reads them from the checkpoint and adds them to the store. Of a store
            on the Hub, ``"fetch"`` downloads experts only when routers select them. Default: a partial store does not
            open.
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
        drop_cold: In generating, an expert that would have to be read is left out if its gate weight is below this
            share of the token's highest, above 0 and up to 1. Prompts are computed with all experts. Saves reads;
            changes the output, which then depends on what is in memory. Default: every expert is read.
        max_context: Tokens (sequences × length) that the budget provides for; more are refused. Default: 4096, or less
            if the model was made for less; no limit if only ``expert_memory`` is given. Logits are provided for as
            ``generate`` needs them: the last position's. A call of the model itself makes those of all positions, and
            is refused where they do not fit; ``logits_to_keep=1`` asks for the last, of every class that generates.
        verify_reads: Compare every expert read with its checksum (stores only).
        revision: Branch, tag or commit of a Hub repository.
        offline: Use only what is on this machine; never ask the Hub.
        max_rate: Most bytes in a second that are read over the network, such as ``"20MB/s"``: when a Hub id is opened,
            and for ``missing="fetch"``. Refused where all that is read is on this machine.
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
    if device != "cpu":
        raise UnsupportedError(
            f"device={device!r} is not supported.", advice='Only "cpu" has been run; leave device out.', device=device
        )
    opening = Opening(
        memory=memory,
        expert_memory=expert_memory,
        component=component,
        missing=missing,
        source=source,
        eviction=eviction,
        prefetch=prefetch,
        profile=profile,
        warm=warm,
        pin=pin,
        experts_per_token=experts_per_token,
        drop_cold=drop_cold,
        max_context=max_context,
        verify_reads=verify_reads,
        revision=revision,
        offline=offline,
        max_rate=max_rate,
        threads=threads,
    )
    return open_streamed(path, opening)
