"""What llama-server's tools look at: its places for requests, and its settings. Both are read, and never set."""

from __future__ import annotations

from starlette.requests import Request

import coterie
from coterie.generation.chat import chat_template
from coterie.generation.sampling import Sampling
from coterie.server.operations import Operation
from coterie.server.schemas.answers import Props, Slot, SlotList
from coterie.server.service import Service


def operations() -> list[Operation]:
    """The addresses."""
    return [
        Operation(
            path="/slots", summary="Says how far the requests are that the model works for.", method="GET",
            handler=_slots, answered=SlotList,
        ),
        Operation(
            path="/props", summary="Says how requests are answered that do not say.", method="GET",
            handler=_props, answered=Props,
        ),
    ]  # fmt: skip


async def _slots(service: Service, _: Request) -> list[Slot]:
    # Who asks what, and how much of it, is not for others.
    phases = service.phases()
    return [
        {
            "id": number,
            "n_ctx": service.prompts.context,
            "speculative": False,
            "is_processing": number < len(phases),
            "phase": phases[number] if number < len(phases) else None,
        }
        for number in range(max(service.parallel, len(phases)))
    ]


async def _props(service: Service, _: Request) -> Props:
    opened = service.engine.opened
    config = Sampling(max_new_tokens=None).generation_config(opened.model.generation_config)
    tokenizer, sampled = opened.processors.tokenizer, bool(config.do_sample)
    return {
        "default_generation_settings": {
            "n_ctx": service.prompts.context,
            "params": {
                "n_predict": service.most(None) or -1,
                "seed": -1,
                "temperature": (1.0 if config.temperature is None else config.temperature) if sampled else 0.0,
                "top_k": config.top_k or 0 if sampled else 0,
                "top_p": 1.0 if config.top_p is None else config.top_p,
                "min_p": config.min_p or 0.0,
                "repeat_penalty": config.repetition_penalty or 1.0,
            },
        },
        "total_slots": service.parallel,
        "model_alias": service.name,
        "chat_template": chat_template(opened.processors),
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "modalities": {
            name: kind in opened.processors.kinds
            for name, kind in (("vision", "image"), ("audio", "audio"), ("video", "video"))
        },
        "build_info": f"coterie {coterie.__version__}",
        "is_sleeping": False,
    }
