"""Which model is served, and what it can do."""

from __future__ import annotations

from starlette.requests import Request

from coterie.generation.prefixes import reuses_beginnings
from coterie.server.operations import Operation
from coterie.server.schemas.answers import ModelList, ServedModel
from coterie.server.service import Service


def operations() -> list[Operation]:
    """The addresses."""
    return [
        Operation(
            path="/v1/models", summary="Lists the model that is served, under each of its names.", method="GET",
            handler=_all, answered=ModelList,
        ),
        Operation(
            path="/v1/models/{model:path}", summary="Says what a model can do.", method="GET",
            handler=_one, answered=ServedModel,
        ),
    ]  # fmt: skip


async def _all(service: Service, _: Request) -> ModelList:
    return {"object": "list", "data": [_facts(service, name) for name in service.names]}


async def _one(service: Service, request: Request) -> ServedModel:
    name = request.path_params["model"]
    service.check_model(name)
    return _facts(service, name)


def _facts(service: Service, name: str) -> ServedModel:
    opened = service.engine.opened
    plan, cache = opened.runtime.plan, opened.runtime.cache
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "coterie",
        "max_model_len": service.prompts.context,
        "memory_budget_bytes": None if plan is None else plan.budget,
        "prompt_cache": reuses_beginnings(opened.model),
        "expert_bytes": cache.total_bytes,
        "expert_cache_bytes": cache.stats().capacity,
        "architecture": {
            "input_modalities": service.modalities,
            "output_modalities": ["text", "audio"] if service.voices else ["text"],
        },
        "voices": service.voices,
    }
