"""What the dashboard shows of the model: figures that change, and those that hardly do."""

from __future__ import annotations

import time

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

import coterie
from coterie.engine.statistics import ModelStats
from coterie.plan.machine import process_memory
from coterie.server.operations import Operation
from coterie.server.present import plan_parts
from coterie.server.schemas.dashboard import DashboardModel, DashboardState, LayerPrecision, LayerState, TokenState
from coterie.server.service import Service
from coterie.spec import BankKey
from coterie.spec.parameters import precision

_SPEAKS = "talker"


def operations() -> list[Operation]:
    """The addresses."""
    return [
        Operation(
            path="/coterie/state", summary="What the model and its experts are doing now.", method="GET",
            handler=_state, answered=DashboardState,
        ),
        Operation(
            path="/coterie/model", summary="What the model consists of.", method="GET",
            handler=_model, answered=DashboardModel,
        ),
    ]  # fmt: skip


async def _state(service: Service, _: Request) -> DashboardState:
    # Off the event loop: a model may have tens of thousands of experts.
    return await run_in_threadpool(state, service)


async def _model(service: Service, _: Request) -> DashboardModel:
    return await run_in_threadpool(model, service)


def state(service: Service) -> DashboardState:
    """What is so now."""
    engine = service.engine
    runtime = engine.opened.runtime
    stats = runtime.stats()
    total = stats.total
    return {
        "uptime_s": round(time.time() - service.created, 1),
        "queue": {"running": engine.running, "waiting": engine.waiting, "trouble": engine.trouble},
        "tokens": _tokens(stats),
        "experts": {
            "requested": total.requested,
            "hits": total.hits,
            "misses": total.misses,
            "decode_requested": total.decode_requested,
            "decode_hits": round(total.decode_hit_rate * total.decode_requested),
            "bytes_read": total.bytes_read,
            "read_wait_s": round(total.wait_s, 4),
            "evictions": total.evictions,
            "absent": total.absent,
            "left_out": total.left_out,
            "bytes_not_read": total.bytes_not_read,
            "resident": stats.resident_experts,
            "resident_bytes": stats.resident_bytes,
            "capacity_bytes": stats.capacity,
            "total_bytes": stats.total_expert_bytes,
        },
        "memory": {
            "process_bytes": process_memory().total,
            "requests_total_bytes": engine.governor.total,
            "requests_held_bytes": engine.governor.held,
            "requests_lent_bytes": engine.governor.lent,
            "budget_bytes": None if runtime.plan is None else runtime.plan.budget,
            "plan": None if runtime.plan is None else dict(plan_parts(runtime.plan)),
        },
        "layers": _layers(service, stats),
    }


def _layers(service: Service, stats: ModelStats) -> list[LayerState]:
    resident = service.engine.opened.runtime.resident()
    found: list[LayerState] = []
    for key, demand in service.demand.banks().items():
        counted = stats.layers.get(key)
        found.append({
            "component": key.component,
            "layer": key.layer,
            "bank": key.bank,
            "requested": 0 if counted is None else counted.requested,
            "hits": 0 if counted is None else counted.hits,
            "decode_steps": demand.steps,
            "decode_rows": demand.rows,
            "decode_choices": demand.chosen,
            "decode_union": demand.union,
            "asked": demand.choices.tolist(),
            "resident": resident.get(key, []),
        })  # fmt: skip
    return found


def _tokens(stats: ModelStats) -> TokenState:
    """Of what speaks, the tokens are no text."""
    return {
        "prefill": sum(count for component, count in stats.prefill_tokens.items() if component != _SPEAKS),
        "decode": sum(count for component, count in stats.decode_tokens.items() if component != _SPEAKS),
    }


def model(service: Service) -> DashboardModel:
    """What does not change, unless experts are fetched into the store."""
    opened = service.engine.opened
    experts, names = opened.runtime.source.experts, dict[str, int]()
    stored: dict[BankKey, list[int | None]] = {
        key: [None] * count for key, count in sorted(opened.runtime.source.num_experts.items())
    }
    for key in experts.keys():
        if (row := stored.get(key.bank_key)) is not None:
            row[key.expert] = names.setdefault(precision(experts.layout(key)), len(names))
    layers: list[LayerPrecision] = [
        {"component": key.component, "layer": key.layer, "bank": key.bank, "precision": row}
        for key, row in stored.items()
    ]
    return {
        "version": coterie.__version__,
        "name": service.name,
        "context": service.prompts.context,
        "input_modalities": service.modalities,
        "voices": service.voices,
        "can_chat": service.prompts.can_chat,
        "profile": service.explorer is not None,
        "precisions": list(names),
        "layers": layers,
    }
