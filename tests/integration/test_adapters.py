"""Classes that transformers does not decorate, each computing in a way of its own: the bits of stock all the same."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import PreTrainedModel

from conftest import realigned
from coterie.engine import open_source
from coterie.errors import CoverageError, ExpertMissingError, UnsupportedError
from coterie.extraction import extract
from coterie.hf.families import ADAPTED, DECORATED
from coterie.hf.releases import TESTED
from coterie.inspection import verify
from coterie.integration.adapters.registry import ADAPTERS
from coterie.passes import StreamedBank
from coterie.routing import drop
from coterie.spec import BankKey
from zoo import load, logits
from zoo.small import small_config
from zoo.undecorated import UNDECORATED
from zoo.weights import build

NAMES = sorted(UNDECORATED)
DTYPES = (torch.float32, torch.bfloat16)
SEQUENCE_TO_SEQUENCE = ("nllb_moe", "switch_transformers")
NEW_TOKENS = 6

Paths = Callable[..., Path]
Stock = Callable[..., PreTrainedModel]


@pytest.fixture(scope="module")
def path_of(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """``path_of(name, dtype, kind, experts=None)``: a checkpoint, or a store of it."""
    root = tmp_path_factory.mktemp("undecorated")

    @functools.cache
    def make(name: str, dtype: torch.dtype = torch.float32, kind: str = "store", experts: str | None = None) -> Path:
        if reason := UNDECORATED[name].why_not:
            pytest.skip(reason)
        path = root / f"{name}-{dtype}-{kind}-{experts}"
        if kind == "checkpoint":
            UNDECORATED[name].build(dtype).save_pretrained(path)
        else:
            extract(make(name, dtype, "checkpoint"), path, experts=experts)
        return path

    return make


@pytest.fixture(scope="module")
def stock_of(path_of: Paths) -> Stock:
    @functools.cache
    def make(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        return fresh_stock(path_of(name, dtype, "checkpoint"), dtype)

    return make


def fresh_stock(path: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model, report = load(path, dtype)
    assert {kind: keys for kind, keys in report.items() if keys} == {}
    return realigned(model)


def outputs(model: PreTrainedModel, name: str) -> list[torch.Tensor]:
    """Logits of two prompts at once and of a single token, and the tokens that a prompt goes on with."""
    zoo = UNDECORATED[name]
    token = {key: value[:, :1] for key, value in zoo.inputs(seed=3).items()}
    return [
        logits(model, zoo.inputs(seed=1, batch=2)),
        logits(model, token),
        model.generate(**zoo.inputs(seed=2), max_new_tokens=NEW_TOKENS, do_sample=False),
    ]


@pytest.fixture(scope="module")
def expected(stock_of: Stock) -> Callable[..., list[torch.Tensor]]:
    return functools.cache(lambda name, dtype: outputs(stock_of(name, dtype), name))


def banks_of(model: PreTrainedModel) -> dict[BankKey, StreamedBank]:
    return model.coterie._attachment.banks


def amount(memory: str, path: Path) -> str | int:
    return open_source(path).footprint.least_experts if memory == "minimum" else memory


@pytest.mark.parametrize("memory", ["25%", "minimum"])
@pytest.mark.parametrize("kind", ["checkpoint", "store"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_bits_of_stock(name, dtype, kind, memory, path_of, expected, open_model):
    path = path_of(name, dtype, kind)
    model = open_model(path, expert_memory=amount(memory, path))
    for ours, theirs in zip(outputs(model, name), expected(name, dtype), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs), f"{(ours != theirs).float().mean():.1%} of the elements differ"
    stats = model.coterie.stats()
    assert stats.total.evictions > 0
    assert all(bank.requested for bank in stats.layers.values())
    assert stats.resident_bytes <= stats.capacity


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_worth_comparing(name, expected):
    prompt, token, tokens = expected(name, torch.float32)
    assert torch.isfinite(prompt).all()
    assert torch.isfinite(token).all()
    assert prompt.argmax(-1).unique().numel() > 5
    assert tokens.unique().numel() > 2


@pytest.mark.parametrize("name", NAMES)
def test_within_a_budget_for_the_whole_process(name, path_of, expected, open_model):
    model = open_model(path_of(name, torch.bfloat16), memory="8GiB", max_context=128)
    assert torch.equal(outputs(model, name)[0], expected(name, torch.bfloat16)[0])


@pytest.mark.parametrize("name", NAMES)
def test_no_expert_is_allocated_twice(name, path_of, open_model):
    """What is dense is in memory; of the experts, nothing but what the cache holds."""
    path = path_of(name)
    model = open_model(path, expert_memory="25%")
    source = open_source(path)
    seen = {tensor.data_ptr(): tensor.numel() for tensor in model.parameters()}
    dense = {info.info.name: info.info.nbytes for info in source.dense.values()}
    assert sum(seen.values()) * 4 <= sum(dense.values()) + 4096
    assert not any(parameter.is_meta for parameter in model.parameters())


# --- observers --------------------------------------------------------------------------------------------------------


class Collector:
    """Keeps the events of a model by kind."""

    def __init__(self) -> None:
        self.selected: list[Any] = []
        self.served: list[Any] = []

    def on_event(self, event: Any) -> None:
        kind = type(event).__name__
        if kind == "ExpertsSelected":
            self.selected.append(event)
        elif kind == "ExpertsServed":
            self.served.append(event)


def routing_of_stock(model: PreTrainedModel, name: str, inputs: dict[str, torch.Tensor]) -> list[Any]:
    """(ids, weights) of every experts module, in order, as seen from outside the stock model."""
    seen: list[Any] = []

    def experts(module: Any, args: Any) -> None:
        _, ids, weights = args
        if name == "switch_transformers":
            chosen = ids.squeeze(1)
            ids = torch.where(chosen.any(-1), chosen.argmax(-1), chosen.shape[-1])[:, None]
        seen.append((ids, weights))

    def router(module: Any, args: Any, output: Any) -> None:
        if name == "jetmoe":
            top = output[4].topk(3, dim=1)
            seen.append((top.indices, torch.softmax(top.values, dim=1)))
        else:
            scores, _ = output
            seen.append((scores, None))

    hooks = []
    for module in model.modules():
        kind = type(module).__name__
        if kind in ("Llama4Router", "JetMoeTopKGating"):
            hooks.append(module.register_forward_hook(router))
        elif kind.endswith("Experts") and not kind.startswith(("Llama4", "JetMoe")):
            hooks.append(module.register_forward_pre_hook(experts))
    logits(model, inputs)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_observers_see_what_stock_routes(name, path_of, stock_of, open_model):
    model, collector = open_model(path_of(name), expert_memory="25%"), Collector()
    inputs = UNDECORATED[name].inputs(seed=4, batch=2)
    model.coterie.add_observer(collector)
    logits(model, inputs)
    routed = routing_of_stock(stock_of(name), name, inputs)
    assert len(collector.selected) == len(routed) == len(collector.served) > 0
    for event, (ids, weights) in zip(collector.selected, routed, strict=True):
        ours = torch.from_numpy(event.expert_ids.astype("int64"))
        if weights is None:  # llama4: all that is known from outside is the score of every expert
            dense = torch.zeros_like(ids).scatter_(1, ours, torch.from_numpy(event.weights))
            assert torch.equal(dense, ids)
        else:
            assert torch.equal(ours, ids)
            assert torch.equal(torch.from_numpy(event.weights), weights.float())
    projections = 2 if name == "jetmoe" else 1
    for selected, served in zip(collector.selected, collector.served, strict=True):
        assert selected.bank == served.bank
        bank = banks_of(model)[selected.bank].bank
        needed = {e for e in selected.expert_ids.flatten().tolist() if e < bank.num_experts}
        assert served.requested == projections * len(needed)


def test_tokens_beyond_capacity_get_no_expert(path_of, open_model):
    if Version(transformers.__version__) < Version("5.8"):
        pytest.skip("in older releases no expert of Switch Transformers is ever full")
    model, collector = open_model(path_of("switch_transformers")), Collector()
    model.coterie.add_observer(collector)
    logits(model, UNDECORATED["switch_transformers"].inputs(seed=4, batch=2))
    ids = collector.selected[0].expert_ids.flatten().tolist()
    assert 8 in ids
    assert len(set(ids)) > 4


def test_identity_experts_are_chosen_and_have_no_record(path_of, open_model):
    model, collector = open_model(path_of("longcat_flash")), Collector()
    model.coterie.add_observer(collector)
    logits(model, UNDECORATED["longcat_flash"].inputs(seed=4, batch=2))
    ids = {e for event in collector.selected for e in event.expert_ids.flatten().tolist()}
    assert ids & {8, 9, 10, 11}
    assert max(key.expert for key in open_source(path_of("longcat_flash")).experts.keys()) == 7


def test_a_token_for_identity_experts_alone(path_of, stock_of, open_model):
    model, stock = open_model(path_of("longcat_flash"), expert_memory="25%"), stock_of("longcat_flash")
    hidden, ids = torch.randn(2, 64), torch.tensor([[9, 8, 11], [10, 8, 9]])
    weights = torch.tensor([[0.5, 0.25, 0.125], [1.0, 0.5, 0.25]])
    ours, theirs = (m.model.layers[0].mlp.experts(hidden, ids, weights) for m in (model, stock))
    assert torch.equal(ours, theirs)
    assert model.coterie.stats().total.requested == 0


@pytest.mark.parametrize("name", SEQUENCE_TO_SEQUENCE)
def test_encoder_and_decoder_are_counted_apart(name, path_of, open_model):
    model = open_model(path_of(name))
    model.generate(**UNDECORATED[name].inputs(seed=2), max_new_tokens=NEW_TOKENS, do_sample=False)
    stats = model.coterie.stats()
    assert set(stats.components) == {"encoder", "decoder"}
    assert stats.prefill_tokens["encoder"] == 24
    assert stats.decode_tokens == {"encoder": 0, "decoder": NEW_TOKENS - 1}
    assert stats.components["decoder"].decode_requested > 0
    assert stats.components["encoder"].decode_requested == 0


# --- stores with fewer experts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_partial_store_opens_only_with_a_policy(name, path_of, open_model):
    with pytest.raises(CoverageError):
        open_model(path_of(name, experts="1-2"), expert_memory="100%")


@pytest.mark.parametrize("name", NAMES)
def test_an_absent_expert_is_named(name, path_of, open_model):
    model = open_model(path_of(name, experts="1-2"), missing="error")
    with pytest.raises(ExpertMissingError) as caught:
        logits(model, UNDECORATED[name].inputs(seed=1))
    assert 0 not in set(caught.value.experts) & {1, 2}
    assert caught.value.bank in model.coterie.banks


@pytest.mark.parametrize("name", NAMES)
def test_all_experts_may_be_absent(name, path_of, stock_of, open_model):
    """Then every token passes by: as if each expert gave zero."""
    model = open_model(path_of(name, experts="1-2"), missing="drop")
    for bank in banks_of(model).values():
        bank.missing = functools.partial(drop, available=torch.zeros(bank.bank.num_experts, dtype=torch.bool))
        if name == "longcat_flash":
            bank.missing = functools.partial(drop, available=torch.zeros(12, dtype=torch.bool))
    stock = fresh_stock(path_of(name, torch.float32, "checkpoint"))
    for target in {name for bank in banks_of(model).values() for names in bank.bank.targets.values() for name in names}:
        stock.get_parameter(target).data.zero_()
    for module in stock.modules():
        if hasattr(module, "identity_expert"):
            module.identity_expert.forward = torch.zeros_like
    inputs = UNDECORATED[name].inputs(seed=1)
    torch.testing.assert_close(logits(model, inputs), logits(stock, inputs))
    assert model.coterie.stats().total.absent > 0


@pytest.mark.parametrize("name", ["dbrx", "longcat_flash", "step3p7", "llama4_text_top3", "jetmoe"])
def test_drop_leaves_out_what_is_absent(name, path_of, open_model):
    """The reference: a stock model whose routing is changed from outside."""
    model = open_model(path_of(name, experts="0-3"), missing="drop")
    stock = fresh_stock(path_of(name, torch.float32, "checkpoint"))
    total = 12 if name == "longcat_flash" else 8
    available = torch.tensor([e < 4 or e >= 8 for e in range(total)])
    for module in stock.modules():
        drop_in_stock(module, available)
    inputs = UNDECORATED[name].inputs(seed=1, batch=2)
    torch.testing.assert_close(logits(model, inputs), logits(stock, inputs))
    assert model.coterie.stats().total.absent > 0


def drop_in_stock(module: Any, available: torch.Tensor) -> None:
    """Gives absent experts weight 0 and scales the others' weights, wherever the class decides on them."""

    def scaled(ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        kept = weights * available[ids]
        left = kept.sum(-1, keepdim=True)
        return torch.where(left == 0, 0, kept * weights.sum(-1, keepdim=True) / left.masked_fill(left == 0, 1))

    def of_arguments(_: Any, args: Any) -> Any:
        hidden, ids, weights = args
        return hidden, ids, scaled(ids, weights)

    def of_scores(router: Any, _: Any, output: Any) -> Any:
        scores, raw = output
        ids = raw.topk(router.top_k, dim=1).indices
        return torch.zeros_like(scores).scatter_(1, ids, scaled(ids, scores.gather(1, ids))), raw

    def of_groups(router: Any, _: Any, output: Any) -> Any:
        order, tokens, gates, sizes, raw = output
        top = raw.topk(router.top_k, dim=1)
        gates = scaled(top.indices, torch.softmax(top.values, dim=1)).flatten()[order]
        return order, tokens, gates, sizes, raw

    kind = type(module).__name__
    if kind == "Llama4Router":
        module.register_forward_hook(of_scores)
    elif kind == "JetMoeTopKGating":
        module.register_forward_hook(of_groups)
    elif kind in ("DbrxExperts", "LongcatFlashExperts", "Step3p7Experts"):
        module.register_forward_pre_hook(of_arguments)


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_store_is_its_checkpoint(name, path_of):
    assert not verify(path_of(name), against=path_of(name, torch.float32, "checkpoint")).problems


def test_weights_of_identity_experts_are_not_needed(path_of, tmp_path, expected, open_model):
    """transformers saves rows for them that nothing reads; the released checkpoint has none."""
    from safetensors.torch import load_file, save_file

    source = path_of("longcat_flash", torch.float32, "checkpoint")
    assert open_source(source).kind == "checkpoint"
    tensors = load_file(source / "model.safetensors")
    kept = {n: t for n, t in tensors.items() if not any(f".experts.{e}." in n for e in (8, 9, 10, 11))}
    assert len(kept) == len(tensors) - 2 * 4 * 2
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    model = open_model(tmp_path, expert_memory="25%")
    inputs = UNDECORATED["longcat_flash"].inputs(seed=1, batch=2)
    assert torch.equal(logits(model, inputs), expected("longcat_flash", torch.float32)[0])


def test_doge_is_refused_by_name(tmp_path, open_model):
    from transformers import DogeConfig, DogeForCausalLM

    config = DogeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, is_moe=True,
        num_experts=16, num_experts_per_tok=2,
    )  # fmt: skip
    DogeForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="DogeForCausalLM cannot be streamed: its experts are rows"):
        open_model(tmp_path)


# --- threads, stand-ins, registry -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["switch_transformers", "jetmoe", "llama4_text", "longcat_flash"])
def test_two_threads_on_one_model(name, path_of, stock_of, open_model):
    model = open_model(path_of(name), expert_memory="50%")
    zoo = UNDECORATED[name]

    def job(seed: int) -> torch.Tensor:
        torch.set_num_threads(1)
        return logits(model, zoo.inputs(seed=seed, batch=2))

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(job, range(6)))
    for seed, result in enumerate(results):
        assert torch.equal(result, logits(stock_of(name), zoo.inputs(seed=seed, batch=2)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [512, 1000])
def test_wide_experts_on_several_threads(width, dtype, two_threads, tmp_path, open_model):
    """What torch spreads over threads, it spreads otherwise for one expert than for the class's batch of all."""
    options = {"hidden_size": 256, "head_dim": 64, "intermediate_size": width, "intermediate_size_mlp": 64}
    config = small_config("Llama4TextConfig", **options, attention_chunk_size=128)
    build(transformers.Llama4ForCausalLM, config, dtype).save_pretrained(tmp_path)
    stock, model = fresh_stock(tmp_path, dtype), open_model(tmp_path, expert_memory="50%")
    for length in (1, 3, 24, 65):
        ids = torch.arange(3, 3 + length)[None]
        assert torch.equal(logits(model, {"input_ids": ids}), logits(stock, {"input_ids": ids}))


@pytest.mark.parametrize("name", NAMES)
def test_experts_are_only_there_while_they_are_needed(name, path_of, open_model):
    model = open_model(path_of(name))
    bank = next(iter(banks_of(model).values())).bank
    owner, _, parameter = next(iter(bank.targets.values()))[0].rpartition(".")
    stand_in = getattr(model.get_submodule(owner), parameter)
    with pytest.raises(UnsupportedError, match="outside the model's forward pass"):
        stand_in[0]
    with pytest.raises(UnsupportedError, match="not all in memory"):
        stand_in.sum()


def test_every_family_has_an_adapter():
    assert set(ADAPTERS) == {DECORATED, *(family.name for family in ADAPTED)}


def test_every_class_of_a_family_is_one_of_transformers():
    if transformers.__version__ != TESTED[-1]:
        pytest.skip("older releases lack some of them")
    known = set()
    for file in Path(transformers.__file__).parent.glob("models/*/modeling_*.py"):
        text = file.read_text(encoding="utf-8")
        known.update(name for family in ADAPTED for name in family.class_names if f"class {name}(" in text)
    assert known == {name for family in ADAPTED for name in family.class_names}
