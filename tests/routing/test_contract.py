"""The contract of every class that routes: stock when nothing is masked, brute force when something is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from torch.testing import assert_close

from coterie.errors import UnsupportedError, UsageError
from coterie.hf.releases import TESTED
from coterie.routing import adapt_router, require_family, router_family, router_rows
from routing.reference import RULES
from routing.reference import route as reference
from routing.routers import ALONE, CLASSES, inputs, route, router_of, same, width_of

pytestmark = pytest.mark.matrix

BF16 = torch.bfloat16
PLAIN = sorted(RULES)
"""Classes that give ids and weights [T, K] and choose any number of experts."""
FIXED = {"PhimoeTopKRouter": 2, "SwitchTransformersTop1Router": 1}
OTHER_OUTPUTS = {"JetMoeTopKGating", "Llama4Router"}
REFUSED = {"DeepseekV4HashRouter", "NllbMoeTop2Router"}


def experts_of(router: nn.Module) -> int:
    """E; some classes have choices besides."""
    return router.num_experts if isinstance(getattr(router, "num_experts", None), int) else width_of(router)


def stock_k(router: nn.Module, arguments: dict[str, torch.Tensor]) -> int:
    return route(router, arguments).ids.shape[1]


def mask(router: nn.Module, present: list[int]) -> torch.Tensor:
    return torch.tensor([e in present for e in range(experts_of(router))])


# --- coverage ---------------------------------------------------------------------------------------------------------


def test_every_class_is_in_the_contract():
    assert set(CLASSES) | set(ALONE) == set(PLAIN) | set(FIXED) | OTHER_OUTPUTS | (REFUSED & set(ALONE))


def test_no_class_of_transformers_is_left_out():
    """Whatever is called a router and has a top-k or an argmax, in a module with experts."""
    root = Path(transformers.__file__).parent / "models"
    found = set()
    for path in root.glob("*/modeling_*.py"):
        source = path.read_text()
        if "xperts" not in source:
            continue
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and re.search(r"(Router|Gating|Gate)$", node.name):
                text = ast.get_source_segment(source, node) or ""
                if re.search(r"\btopk\(|argmax\(|sparsemixer\(", text):
                    found.add(node.name)
    if transformers.__version__ == TESTED[-1]:
        assert found <= set(PLAIN) | set(FIXED) | OTHER_OUTPUTS | REFUSED
        assert len(found) > 60


# --- nothing masked ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("name", sorted({*CLASSES, *ALONE} - REFUSED))
def test_unmasked_output_is_bit_equal_to_stock(name, dtype):
    router = router_of(name, dtype)
    arguments = inputs(router, dtype)
    everyone = torch.ones(experts_of(router), dtype=torch.bool)
    with torch.no_grad():
        expected = router(**arguments)
        assert same(tuple(adapt_router(router)(**arguments)), tuple(expected))
        assert same(tuple(adapt_router(router, available=everyone)(**arguments)), tuple(expected))


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("name", PLAIN)
def test_experts_per_token_equals_a_stock_router_with_that_top_k(name, dtype):
    router = router_of(name, dtype)
    arguments = inputs(router, dtype)
    for k in {1, min(stock_k(router, arguments) + 1, experts_of(router)), experts_of(router)}:
        stock = router_of(name, dtype)
        if "top_k" in stock.__dict__:
            stock.top_k = k
        else:
            stock.config.top_k_experts = k
        expected = route(stock, arguments)
        got = route(adapt_router(router, experts_per_token=k), arguments)
        assert torch.equal(got.ids, expected.ids)
        if name == "OpenAIPrivacyFilterTopKRouter":
            # Its block multiplies with its own K, so that the weights of a token sum to one.
            assert_close(got.weights.float().sum(-1) * router.top_k, torch.ones(24), rtol=1e-2, atol=0)
        else:
            assert same(got.outputs, expected.outputs)


# --- something masked -------------------------------------------------------------------------------------------------

PRESENT = {
    "most": [0, 1, 3, 4, 6, 7],
    "one of each group": [0, 3, 4, 7],
    "groups emptied": [2, 3, 6],
    "a single group": [4, 5],
    "one": [5],
    "none": [],
}


@pytest.mark.parametrize("present", list(PRESENT.values()), ids=list(PRESENT))
@pytest.mark.parametrize("name", PLAIN)
def test_masked_selection_equals_brute_force(name, present):
    router = router_of(name)
    arguments = inputs(router)
    first = route(router, arguments).logits
    k, count = stock_k(router, arguments), experts_of(router)
    present = [e for e in present if e < count]
    extra = list(range(count, first.shape[-1]))
    for wanted in (k, min(k + 2, count)):
        adapted = adapt_router(router, available=mask(router, present), experts_per_token=wanted)
        got = route(adapted, arguments)
        assert torch.equal(got.logits, first), "the logits of all experts are as before"
        assert got.ids.shape == got.weights.shape == (24, wanted)
        assert got.weights.dtype == route(router, arguments).weights.dtype
        for token, expected in enumerate(reference(router, arguments, first, present + extra, wanted)):
            check_token(name, router, got.ids[token].tolist(), got.weights[token].tolist(), expected)


def check_token(name: str, router: nn.Module, ids: list[int], weights: list[float], expected: dict[int, float]) -> None:
    count = experts_of(router)
    pairs = list(expected.items())
    if name == "ZayaRouter":  # says expert 0 with weight 0 where it chooses no expert
        pairs = [(e, w) if e != count else (0, 0.0) for e, w in pairs]
    filled = len(pairs)
    for (expert, weight), (i, w) in zip(
        sorted(pairs), sorted(zip(ids[:filled], weights[:filled], strict=True)), strict=True
    ):
        assert i == expert
        assert w == pytest.approx(weight, rel=1e-4, abs=1e-7)
    assert ids[filled:] == [count] * (len(ids) - filled)
    assert weights[filled:] == [0.0] * (len(ids) - filled)


@pytest.mark.parametrize("name", PLAIN)
def test_in_bf16_no_absent_expert_is_chosen_and_nothing_is_nan(name):
    router = router_of(name, BF16)
    arguments = inputs(router, BF16)
    for present in PRESENT.values():
        got = route(adapt_router(router, available=mask(router, present)), arguments)
        allowed = {*present, *range(experts_of(router), width_of(router) + 1)}
        if name == "ZayaRouter":
            allowed.add(0)
        assert set(got.ids.unique().tolist()) <= allowed
        assert got.weights.isfinite().all()


@pytest.mark.parametrize("name", PLAIN)
def test_absent_experts_that_had_every_chance_leave_no_nan(name):
    """An expert far above all others is absent; the others are still told apart."""
    router = router_of(name)
    with torch.no_grad():
        router_rows(router)[1] *= 200
    arguments = inputs(router)
    got = route(adapt_router(router, available=mask(router, [0, 2, 4, 6, 7])), arguments)
    assert got.weights.isfinite().all()
    if name != "ZayaRouter":
        assert 1 not in got.ids
        assert len(got.ids.unique()) > 1


# --- classes that differ ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("present", list(PRESENT.values()), ids=list(PRESENT))
def test_sparse_mixer_chooses_one_after_the_other(present):
    router = router_of("PhimoeTopKRouter")
    arguments = inputs(router)
    adapted = adapt_router(router, available=mask(router, present))
    got = route(adapted, arguments)
    logits = got.logits.double()
    assert torch.equal(got.logits, route(router, arguments).logits)
    for token in range(24):
        left, expected = list(present), []
        for _ in range(min(2, len(present))):
            best = max(left, key=lambda e: float(logits[token, e]))
            top = float(logits[token, best])
            near = [
                e
                for e in left
                if (top - float(logits[token, e])) / max(abs(float(logits[token, e])), top)
                <= 2 * router.router_jitter_noise
            ]
            total = sum(torch.tensor([float(logits[token, e]) - top for e in near]).exp())
            expected.append((best, 1 / float(total)))
            left.remove(best)
        empty = [(experts_of(router), 0.0)] * (2 - len(expected))
        for (expert, weight), i, w in zip(
            expected + empty, got.ids[token].tolist(), got.weights[token].tolist(), strict=True
        ):
            assert i == expert
            assert w == pytest.approx(weight, rel=1e-4)


@pytest.mark.parametrize("present", list(PRESENT.values()), ids=list(PRESENT))
def test_top_1_with_capacity(present):
    """Each sequence in turn: a token gets the best expert that is there, if that has room left."""
    router = router_of("SwitchTransformersTop1Router")
    router.expert_capacity = 5
    hidden = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        outputs = adapt_router(router, available=mask(router, present))(hidden)
        logits = router.classifier(hidden)
    chosen = next(o for o in outputs if o.dtype == torch.int64)
    weights = next(o for o in outputs if o.is_floating_point() and o.shape[-1] == 1)
    assert all(torch.equal(o, logits) for o in outputs if o.is_floating_point() and o.shape[-1] == 8)
    # Releases up to 5.17 count along a dimension of size one: every expert has room for all.
    room = 5 if chosen.ndim == 3 else hidden.shape[1]
    chosen = chosen.view(2, 12, 8)
    probabilities = logits.double().softmax(-1)
    for sequence in range(2):
        served = dict.fromkeys(range(8), 0)
        for token in range(12):
            row = probabilities[sequence, token]
            expected = [0] * 8
            if present:
                best = max(present, key=lambda e: float(row[e]))
                served[best] += 1
                expected[best] = int(served[best] <= room)
                assert float(weights[sequence, token, 0]) == pytest.approx(float(row[best]), rel=1e-5)
            else:
                assert float(weights[sequence, token, 0]) == 0
            assert chosen[sequence, token].tolist() == expected


@pytest.mark.parametrize("name", sorted(FIXED))
def test_a_fixed_number_of_experts_is_not_changed(name):
    router = router_of(name)
    adapt_router(router, experts_per_token=FIXED[name])
    with pytest.raises(UnsupportedError, match=rf"experts_per_token .*{name}.* always chooses {FIXED[name]}"):
        adapt_router(router, experts_per_token=3)


@pytest.mark.parametrize("present", list(PRESENT.values()), ids=list(PRESENT))
def test_llama4_scores_only_who_is_there(present):
    router = router_of("Llama4Router")
    arguments = inputs(router)
    with torch.no_grad():
        scores, logits = adapt_router(router, available=mask(router, present))(**arguments)
        assert torch.equal(logits, router(**arguments)[1])
    for token in range(24):
        best = sorted(present, key=lambda e: -float(logits[token, e]))[:3]
        assert scores[token].nonzero().flatten().tolist() == sorted(best)
        assert_close(scores[token, best], logits[token, best].sigmoid())


@pytest.mark.parametrize("present", list(PRESENT.values()), ids=list(PRESENT))
def test_jetmoe_groups_only_who_is_there(present):
    router = router_of("JetMoeTopKGating")
    arguments = inputs(router)
    with torch.no_grad():
        order, tokens, weights, sizes, logits = adapt_router(router, available=mask(router, present))(**arguments)
    k = min(3, len(present))
    assert len(order) == len(tokens) == len(weights) == sum(sizes) == 24 * k
    got = {}
    for expert, size in enumerate(sizes):
        start = sum(sizes[:expert])
        for token, weight in zip(tokens[start:][:size].tolist(), weights[start:][:size].tolist(), strict=True):
            got[token, expert] = weight
    for token in range(24):
        best = sorted(present, key=lambda e: -float(logits[token, e]))[:k]
        assert {e for t, e in got if t == token} == set(best)
        expected = logits[token, best].softmax(-1)
        assert_close(torch.tensor([got[token, e] for e in best]), expected, rtol=1e-4, atol=1e-6)


def test_classes_that_choose_otherwise_are_refused_by_name():
    router = router_of("NllbMoeTop2Router")
    assert router_family(router) is None
    for purpose in ("missing='mask'", "experts_per_token"):
        with pytest.raises(UnsupportedError, match=rf"{purpose} .*NllbMoeTop2Router, which chooses .*'drop'"):
            require_family(router, purpose=purpose)


# --- adapters as modules ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({*CLASSES, *ALONE} - REFUSED))
def test_an_adapter_made_on_meta_can_be_loaded(name):
    stock = router_of(name)
    available = mask(stock, [2, 3, 4, 6])
    adapter = adapt_router(router_of(name).to("meta"), available=available)
    assert isinstance(adapter, type(stock))
    assert list(adapter.state_dict()) == list(stock.state_dict())
    for key, tensor in stock.state_dict(keep_vars=True).items():
        owner = adapter.get_submodule(key.rpartition(".")[0])
        registry = owner._parameters if isinstance(tensor, nn.Parameter) else owner._buffers
        registry[key.rpartition(".")[2]] = tensor
    for got, other in zip(adapter.modules(), stock.modules(), strict=True):
        for key, buffer in other.named_buffers(recurse=False):
            got._buffers[key] = buffer
        got.__dict__.update({k: v for k, v in other.__dict__.items() if isinstance(v, torch.Tensor)})
    arguments = inputs(stock)
    with torch.no_grad():
        expected = adapt_router(stock, available=available)(**arguments)
        assert same(tuple(adapter(**arguments)), tuple(expected))


@pytest.mark.parametrize("name", ["DeepseekV3TopkRouter", "GptOssTopKRouter", "PhimoeTopKRouter"])
def test_adapting_an_adapter_starts_from_the_stock_router(name):
    router = router_of(name)
    again = adapt_router(adapt_router(router, available=mask(router, [0])), available=mask(router, [1, 2]))
    assert set(route(again, inputs(router)).ids.unique().tolist()) <= {1, 2, experts_of(router)}
    assert type(again).__mro__.count(type(router)) == 1


def test_a_mask_may_cover_choices_without_an_expert():
    """LongCat-Flash chooses from experts and identities; both lengths of the mask mean something."""
    router = router_of("LongcatFlashTopkRouter")
    counted = 8 if hasattr(router, "num_experts") else 10  # older releases do not say how many are experts
    assert (experts_of(router), width_of(router)) == (counted, 10)
    adapter = adapt_router(router, available=torch.tensor([False] * 8 + [True, False]))
    got = route(adapter, inputs(router))
    assert set(got.ids.flatten().tolist()) == {8, 10}
    with pytest.raises(UsageError, match=rf"bool \[{counted}\]"):
        adapt_router(router, available=torch.ones(9, dtype=torch.bool))
