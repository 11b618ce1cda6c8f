"""transformers' recording hooks are told from others, and a recording one from one that waits."""

from __future__ import annotations

import torch

from coterie.hf.recorders import only_idle_recorders


def test_recorders_wait_but_while_their_output_is_wanted(zoo_checkpoint) -> None:
    from zoo import stock

    model = stock(zoo_checkpoint("qwen3_moe"), torch.float32)
    attention, gate = model.model.layers[0].self_attn, model.model.layers[0].mlp.gate
    ids = torch.arange(3, 9)[None]
    assert only_idle_recorders(attention._forward_hooks)  # none
    found: list[tuple[bool, bool]] = []
    with torch.no_grad():
        model(ids, output_hidden_states=True)
        assert attention._forward_hooks
        assert gate._forward_hooks

        def look(*_: object) -> None:
            found.append(tuple(only_idle_recorders(one._forward_hooks) for one in (attention, gate)))

        model.model.layers[0].input_layernorm.register_forward_hook(look)
        model(ids, output_hidden_states=True)
        model(ids, output_router_logits=True)
        model(ids)
    assert found == [(True, True), (True, False), (True, True)]
    assert only_idle_recorders(gate._forward_hooks)


def test_other_hooks_are_not_recorders() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.register_forward_hook(lambda *_: None)
    assert not only_idle_recorders(layer._forward_hooks)
    layer.register_forward_hook(print)
    assert not only_idle_recorders(layer._forward_hooks)
