"""Layers and routers of lossy models: native for a token, the class's own for everything else, and near it."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import realigned
from coterie.errors import UsageError
from coterie.extraction import extract
from coterie.hf.caches import caches_in
from coterie.integration.quantised import TokenExperts
from coterie.integration.token_layer import LayerGroup, TokenLayer
from coterie.integration.token_router import TokenRouter
from coterie.native import NativeLayer, TokenStates, library, rotate, token_attention
from coterie.passes.forwards import at, install, own, remove
from coterie.routing import Preview, preview_of
from coterie.spec import ExpertsContributed, ExpertsSelected, ExpertsServed
from harness.kept_cache import kept_cache
from zoo import ZOO, save, stock
from zoo.omni import omni_config

pytestmark = pytest.mark.usefixtures("native")

NAMES = ["qwen3_moe", "qwen3_vl_moe", "qwen3_omni_thinker", "qwen3_omni"]
IDS = torch.arange(3, 19)[None]


@pytest.fixture
def finished(monkeypatch) -> list[NativeLayer]:
    """Every layer that was computed natively, in order."""
    calls: list[NativeLayer] = []
    original = NativeLayer.release

    def release(self, state):
        calls.append(self)
        original(self, state)

    monkeypatch.setattr(NativeLayer, "release", release)
    return calls


def replaced(model: nn.Module, kind: type) -> list[Any]:
    return [one for one in model.modules() if isinstance(own(one), kind)]


def text(model: Any) -> Any:
    return getattr(model, "thinker", model)


def continued(model: Any, ids: torch.Tensor = IDS, steps: int = 6, **options: Any) -> torch.Tensor:
    """Logits of steps with one token each, after a prompt."""
    found = []
    with torch.no_grad():
        out = text(model)(ids, use_cache=True)
        for step in range(steps):
            token = torch.full_like(ids[:, :1], step + 5)
            out = text(model)(token, **kept_cache(out), use_cache=True, **options)
            found.append(out.logits)
    return torch.cat(found, dim=1)


def distance(got: torch.Tensor, want: torch.Tensor) -> float:
    """Relative, of the token in the middle: where scores are close, rounding sends a token to another expert."""
    got, want = got.float().flatten(0, -2), want.float().flatten(0, -2)
    return float(((got - want).norm(dim=-1) / want.norm(dim=-1)).median())


class PartByPart:
    """Attention with the library's functions, each by itself; the rest of the layer is then the class's."""

    def __init__(self, module: Any) -> None:
        self.module, self.calls = module, 0

    def __call__(self, hidden_states, position_embeddings, **others):
        module, loaded = self.module, library()
        if hidden_states.shape[1] > 1:
            return type(module).forward(module, hidden_states, position_embeddings, **others)
        (cache,) = caches_in(others.values())
        self.calls += 1
        width = module.head_dim
        query = module.q_norm(module.q_proj(hidden_states).view(1, 1, -1, width)).contiguous()
        key = module.k_norm(module.k_proj(hidden_states).view(1, 1, -1, width)).contiguous()
        value = module.v_proj(hidden_states).view(1, -1, 1, width)
        for heads in (query, key):
            rotate(loaded, heads, *position_embeddings)
        keys, values = cache.update(key.view(1, -1, 1, width), value, module.layer_idx)
        return module.o_proj(token_attention(loaded, query, keys, values, module.scaling)), None


def part_by_part(model: nn.Module) -> list[PartByPart]:
    """Takes the layers' native forwards away; attention is computed by its parts."""
    parts = []
    for layer in replaced(model, TokenLayer):
        remove(layer, "native")
        parts.append(PartByPart(layer.self_attn))
        install(layer.self_attn, "native", parts[-1])
    return parts


@pytest.mark.parametrize("name", NAMES)
def test_near_the_class_s_own(name: str, store, open_model, finished) -> None:
    model = open_model(store(name), prefetch="off")  # which watches routers
    layers = replaced(text(model), TokenLayer)
    assert layers
    assert replaced(text(model), TokenRouter)
    got = continued(model)
    assert len(finished) == 6 * len(layers)
    for module in (*replaced(model, TokenLayer), *replaced(model, TokenRouter)):
        remove(module, "native")
    assert distance(got, continued(model)) < 0.03


@pytest.mark.parametrize("length", [1, 2, 150])
@pytest.mark.parametrize("name", NAMES)
def test_bits_are_those_of_the_parts(name: str, length: int, store, open_model) -> None:
    model = open_model(store(name))
    ids = torch.arange(length)[None] % 90 + 3
    got = continued(model, ids)
    parts = part_by_part(text(model))
    assert torch.equal(got, continued(model, ids))
    assert all(part.calls == 6 + (length == 1) for part in parts)


@pytest.fixture(scope="module")
def talking(tmp_path_factory) -> Path:
    """A store of an omni model whose talker's shared experts are computed natively, too."""
    root = tmp_path_factory.mktemp("talking")
    model = replace(ZOO["qwen3_omni"], config=partial(omni_config, whole_groups=True))
    save(model, torch.bfloat16, root / "checkpoint")
    extract(root / "checkpoint", root / "store", scheme="int4", dense_scheme="int4")
    return root / "store"


def stepped(layer: Any, config: Any) -> torch.Tensor:
    """What a talker's layer makes of some tokens one after the other."""
    from transformers import DynamicCache

    width, head = layer.self_attn.q_proj.in_features, layer.self_attn.head_dim
    generator = torch.Generator().manual_seed(1)
    cache, found = DynamicCache(config=config), []
    for _ in range(20):
        hidden = torch.randn(1, 1, width, generator=generator).bfloat16()
        angles = torch.rand(1, 1, head, generator=generator)
        embeddings = (angles.cos().bfloat16(), angles.sin().bfloat16())
        with torch.no_grad():
            found.append(layer(hidden, past_key_values=cache, position_embeddings=embeddings))
    return torch.cat(found)


def test_the_talker_s_layers_are_native_with_their_shared_experts(talking, open_model, finished) -> None:
    model = open_model(talking, expert_memory="100%")
    layers = replaced(model.talker, TokenLayer)
    assert len(layers) == len(model.talker.model.layers)
    layer, calls = layers[0], []
    assert {layer.mlp, layer.mlp.shared_expert, layer.mlp.shared_expert_gate} <= set(own(layer).stands_for)
    got = stepped(layer, model.talker.model.config)
    assert len(finished) == 20
    layer.mlp.shared_expert.down_proj.register_forward_hook(lambda *_: calls.append(1))
    finished.clear()
    want = stepped(layer, model.talker.model.config)
    assert len(calls) == 20
    assert not finished
    assert distance(got, want) < 0.01
    assert distance(got, want - layer.mlp.shared_expert(layer.post_attention_layernorm(want))) > 0.02


def test_a_block_of_another_kind_is_called(talking, open_model, finished) -> None:
    model = open_model(talking)
    layer = replaced(model.talker, TokenLayer)[0]

    class Other(type(layer.mlp)):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(hidden_states)

    remove(layer, "native")
    layer.mlp.__class__ = Other
    again = TokenLayer.of(layer, library(), LayerGroup(TokenStates()))
    assert again is not None
    assert layer.mlp not in again.stands_for
    install(layer, "native", again)
    got = stepped(layer, model.talker.model.config)
    assert len(finished) == 20
    part_by_part(layer)
    assert torch.equal(got, stepped(layer, model.talker.model.config))


def test_greedy_text_is_that_of_the_parts(store, open_model, finished) -> None:
    model = open_model(store("qwen3_moe"))
    got = model.generate(IDS, max_new_tokens=24, do_sample=False)
    assert len(finished) == 23 * len(replaced(model, TokenLayer))
    part_by_part(model)
    assert torch.equal(got, model.generate(IDS, max_new_tokens=24, do_sample=False))


def test_the_same_at_every_budget_and_with_prefetch(store, open_model, finished) -> None:
    path = store("qwen3_moe")
    whole = continued(open_model(path))
    for options in ({"expert_memory": "30%"}, {"expert_memory": "30%", "prefetch": "on"}):
        finished.clear()
        model = open_model(path, **options)
        assert torch.equal(continued(model), whole)
        assert len(finished) == 6 * len(replaced(model, TokenLayer)) > 0
    model.generate(IDS, max_new_tokens=30, do_sample=False)
    assert model.coterie.stats().prefetch_hinted > 0


def test_a_model_with_its_own_linear_layers_is_left_alone(store, open_model) -> None:
    model = open_model(store("qwen3_moe", "native"))
    assert not replaced(model, TokenLayer)
    assert not replaced(model, TokenRouter)


def test_parts_in_no_scheme_are_left_alone(store, open_model, zoo_checkpoint) -> None:
    model = open_model(store("qwen3_omni", "talker=int8,predictor=int8,rest=native", scheme="native"))
    native = {name: type(found) for name, module in model.named_modules() if (found := at(module, "native"))}
    layers = [name for name, kind in native.items() if kind is TokenLayer]
    routers = [name for name, kind in native.items() if kind is TokenRouter]
    assert layers
    assert routers
    assert all(name.startswith("talker.") for name in (*layers, *routers))
    reference = realigned(stock(zoo_checkpoint("qwen3_omni", torch.bfloat16), torch.bfloat16))
    assert torch.equal(continued(model), continued(reference))


def test_layers_are_native_where_parts_have_different_schemes(store, open_model, finished) -> None:
    model = open_model(store("qwen3_moe", "attention=int8,head=int4"))
    got = continued(model)
    assert len(finished) == 6 * len(replaced(model, TokenLayer)) > 0
    part_by_part(model)
    assert torch.equal(got, continued(model))


def test_prompts_and_masked_tokens_go_to_the_class(store, open_model, finished) -> None:
    model = open_model(store("qwen3_moe"))
    mask = torch.ones_like(IDS)
    mask[0, :4] = 0
    model.generate(IDS, attention_mask=mask, max_new_tokens=3, do_sample=False)
    assert not finished


def test_a_cache_of_fixed_size_is_masked_and_left_to_the_class(store, open_model) -> None:
    model = open_model(store("qwen3_moe"))
    dynamic = model.generate(IDS, max_new_tokens=6, do_sample=False)
    static = model.generate(IDS, max_new_tokens=6, do_sample=False, cache_implementation="static")
    assert torch.equal(dynamic, static)


PLACES = ["self_attn", "self_attn.q_proj", "self_attn.k_norm", "post_attention_layernorm", "mlp", "mlp.gate"]


@pytest.mark.parametrize("place", PLACES)
def test_hooks_are_called_while_they_are_there(place: str, store, open_model, finished) -> None:
    model = open_model(store("qwen3_moe"))
    layer, other = replaced(model, TokenLayer)
    seen: list[object] = []
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        finished.clear()
        seen.clear()
        handle = getattr(layer.get_submodule(place), register)(lambda *_: seen.append(1))
        continued(model)
        assert len(seen) == 7  # the prompt, too
        assert finished == [own(other)._native] * 6
        handle.remove()
        finished.clear()
        continued(model)
        assert len(finished) == 12


@pytest.mark.parametrize("place", PLACES)
def test_another_forward_is_called(place: str, store, open_model, finished) -> None:
    model = open_model(store("qwen3_moe"))
    layer, _ = replaced(model, TokenLayer)
    module, calls = layer.get_submodule(place), []
    forward = module.forward
    module.forward = lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    continued(model)
    assert len(calls) == 7
    assert len(finished) == 6


@pytest.mark.parametrize("place", [*PLACES, "mlp.experts"])
def test_another_submodule_is_called(place: str, store, open_model, finished) -> None:
    model = open_model(store("qwen3_moe"))
    layer, _ = replaced(model, TokenLayer)
    inner, calls = layer.get_submodule(place), []

    class Around(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return inner(*args, **kwargs)

    layer.set_submodule(place, Around())
    continued(model)
    assert len(calls) == 7
    assert len(finished) == 6


def test_a_weight_of_one_s_own_is_used(store, open_model, finished) -> None:
    model = open_model(store("qwen3_moe"))
    layer, _ = replaced(model, TokenLayer)
    before = continued(model)
    finished.clear()
    layer.input_layernorm.weight.data = 2 * layer.input_layernorm.weight.data
    assert not torch.equal(continued(model), before)
    assert len(finished) == 6


@pytest.mark.parametrize("options", [{"output_attentions": True}, {"output_router_logits": True}])
def test_what_is_to_be_recorded_is_recorded(options: dict[str, bool], store, open_model, finished) -> None:
    model = open_model(store("qwen3_moe"))
    if "output_attentions" in options:
        model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(IDS, use_cache=True)
        out = model(IDS[:, :1], **kept_cache(out), **options)
    assert not finished
    found = out.attentions if "output_attentions" in options else out.router_logits
    assert len(found) == len(replaced(model, TokenLayer)) == 2
    assert all(one is not None for one in found)
    continued(model)
    assert len(finished) == (0 if "output_attentions" in options else 12)


def test_hidden_states_are_recorded_of_native_layers(store, open_model, finished) -> None:
    """As the thinker of a model that speaks is always run."""
    model = open_model(store("qwen3_moe"))
    options = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True}
    plain = model.generate(IDS, **options)
    finished.clear()
    out = model.generate(IDS, output_hidden_states=True, **options)
    assert len(finished) == 10
    assert [len(step) for step in out.hidden_states] == [3] * 6
    assert torch.equal(out.sequences, plain.sequences)
    # What was recorded of a step is what its layers gave, not memory that the next one wrote to.
    with torch.no_grad():
        kept = kept_cache(model(IDS, use_cache=True))
        for step, token in enumerate(out.sequences[0, IDS.shape[1] : -1]):
            again = model(token[None, None], **kept, output_hidden_states=True).hidden_states
            assert all(torch.equal(a, b) for a, b in zip(out.hidden_states[step + 1], again, strict=True))


@pytest.mark.parametrize("unusual", ["autocast", "training", "eager"])
def test_the_unusual_goes_to_the_class(unusual: str, store, open_model, finished) -> None:
    model = open_model(store("qwen3_moe"))
    if unusual == "training":
        for layer in replaced(model, TokenLayer):
            layer.training = True
    if unusual == "eager":
        model.set_attn_implementation("eager")
    autocast = torch.autocast("cpu", torch.bfloat16) if unusual == "autocast" else contextlib.nullcontext()
    with autocast:
        continued(model)
    assert not finished


def test_defaults_of_torch_make_no_difference(store, open_model) -> None:
    model, ids = open_model(store("qwen3_moe")), torch.arange(150)[None] % 90 + 3
    expected = continued(model, ids)
    torch.set_default_dtype(torch.bfloat16)
    try:
        got = continued(open_model(store("qwen3_moe")), ids)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(got, expected)


def test_a_parametrised_norm_goes_to_the_class(store, open_model, finished) -> None:
    model = open_model(store("qwen3_moe"))
    layer, _ = replaced(model, TokenLayer)
    nn.utils.parametrize.register_parametrization(layer.input_layernorm, "weight", nn.Identity())
    continued(model)
    assert len(finished) == 6


@pytest.mark.parametrize("change", ["float32", "heads", "width"])
def test_a_cache_of_something_else_is_refused(change: str, store, open_model) -> None:
    model = open_model(store("qwen3_moe"))
    with torch.no_grad():
        kept = kept_cache(model(IDS, use_cache=True))
        for layer in next(iter(kept.values())).layers:
            for name in ("keys", "values"):
                own = getattr(layer, name)
                other = {"float32": own.float(), "heads": own[:, :1], "width": own[..., ::2]}[change]
                setattr(layer, name, other.contiguous())
        with pytest.raises((UsageError, RuntimeError)):
            model(IDS[:, :1], **kept, use_cache=True)


@pytest.fixture
def in_one_call(monkeypatch) -> list[bool]:
    """Of every layer whose experts were asked for: whether they were computed without their module."""
    calls: list[bool] = []
    original = TokenExperts.compute

    def compute(self, state):
        whole = original(self, state)
        calls.append(whole is not None)
        return whole

    monkeypatch.setattr(TokenExperts, "compute", compute)
    return calls


class Told:
    """An observer that keeps what it was told, and wants all that there is to know."""

    wants_contributions = True

    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_event(self, event: Any) -> None:
        self.events.append(event)


def chosen(events: list[Any]) -> list[tuple[Any, list[int], list[float]]]:
    return [
        (event.bank, event.expert_ids.flatten().tolist(), event.weights.flatten().tolist())
        for event in events
        if isinstance(event, ExpertsSelected)
    ]


def by_their_module(model: nn.Module) -> None:
    """Has the experts' modules called, as if some expert were never resident."""
    for layer in replaced(model, TokenLayer):
        own(layer)._token_experts = None


@pytest.mark.parametrize("name", ["qwen3_moe", "qwen3_omni_thinker"])
def test_experts_in_one_call_have_the_bits_and_figures_of_their_module(
    name: str, store, open_model, in_one_call
) -> None:
    found = []
    for one_call in (True, False):
        model = open_model(store(name))
        told = Told()
        layers = len(replaced(text(model), TokenLayer))
        if not one_call:
            by_their_module(model)
        model.coterie.add_observer(told)
        logits = continued(model)
        assert len(in_one_call) == one_call * 6 * layers
        # Not while what a step needs was never read, as in the first.
        assert sum(in_one_call) > 0 or not one_call
        in_one_call.clear()
        stats = model.coterie.stats()
        served = [event for event in told.events if isinstance(event, ExpertsServed)]
        added = [(e.bank, e.contributions.tolist()) for e in told.events if isinstance(e, ExpertsContributed)]
        assert len(added) == len(served)
        figures = [(e.bank, e.requested, e.hits) for e in served]
        found.append((logits, chosen(told.events), added, figures, stats.total.hits))
        assert sum(event.hits for event in served) == stats.total.hits
    (ours, *our_figures), (theirs, *their_figures) = found
    assert torch.equal(ours, theirs)
    assert our_figures == their_figures


def test_experts_that_must_be_read_go_through_their_module(store, open_model, in_one_call) -> None:
    model = open_model(store("qwen3_moe"))
    want = continued(model)
    small = open_model(store("qwen3_moe"), expert_memory="40%", prefetch="on")
    in_one_call.clear()
    for _ in range(3):
        assert torch.equal(continued(small), want)
    assert set(in_one_call) == {True, False}
    total = small.coterie.stats().total
    assert 0 < total.hits == total.requested - total.misses


def test_hooks_on_experts_are_called(store, open_model, in_one_call) -> None:
    model = open_model(store("qwen3_moe"))
    want = continued(model)
    in_one_call.clear()
    calls: list[int] = []
    experts = model.model.layers[1].mlp.experts
    handle = experts.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(continued(model), want)
    assert len(calls) == 7  # the prompt's, too
    layers = len(replaced(model, TokenLayer))
    assert len(in_one_call) == 6 * (layers - 1)
    handle.remove()
    assert torch.equal(continued(model), want)
    assert len(in_one_call) == 6 * (2 * layers - 1)


def test_another_forward_of_experts_is_called(store, open_model, in_one_call) -> None:
    model = open_model(store("qwen3_moe"))
    experts = model.model.layers[0].mlp.experts
    forward, calls = experts.forward, []
    experts.forward = lambda *args: calls.append(1) or forward(*args)
    continued(model)
    assert len(calls) == 7


def test_a_closed_model_says_so(store, open_model) -> None:
    model = open_model(store("qwen3_moe"))
    continued(model)
    with torch.no_grad():
        out = model(IDS, use_cache=True)
        model.coterie.close()
        with pytest.raises(UsageError, match="closed"):
            model(IDS[:, :1], **kept_cache(out), use_cache=True)


def test_two_threads_do_not_meet(store, open_model) -> None:
    model = open_model(store("qwen3_moe"))
    prompts = [torch.arange(start, start + 12)[None] for start in (3, 40)]
    want = [model.generate(ids, max_new_tokens=20, do_sample=False) for ids in prompts]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            got = pool.map(lambda ids: model.generate(ids, max_new_tokens=20, do_sample=False), prompts)
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_native_routers_are_asked_ahead_as_others_are(store, open_model) -> None:
    model = open_model(store("qwen3_moe"), expert_memory="60%", prefetch="on")
    continued(model)
    sites = model.coterie._attachment.ahead["text"]._sites[1:]
    assert sites
    hidden = torch.randn(1, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    for site in sites:
        assert site.can_predict
        assert not isinstance(site._preview, Preview)
        usual = preview_of(site._block)
        assert usual is not None
        with torch.inference_mode():
            expected = usual((hidden + site._drifts_D[0]).to(hidden.dtype))
        assert site.predict(hidden) == expected[0].tolist()
