"""Operations that would miss the experts say so; everything else of a model goes on working."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch

from coterie.errors import CoterieError, UnsupportedError
from zoo import ZOO, logits

BF16 = torch.bfloat16
NAMES = ["qwen3_moe", "gpt_oss"]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(name, zoo_store, open_model):
    return open_model(zoo_store(name, BF16), expert_memory="25%")


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        ("save_pretrained", ("somewhere",)),
        ("push_to_hub", ("me/it",)),
        ("state_dict", ()),
        ("load_state_dict", ({},)),
        ("half", ()),
        ("float", ()),
        ("double", ()),
        ("bfloat16", ()),
        ("type", (torch.float16,)),
        ("cuda", ()),
        ("to_empty", ()),
        ("load_adapter", ("an-adapter",)),
        ("add_adapter", (None,)),
        ("resize_token_embeddings", (10,)),
        ("generate_batch", ([[1, 2]],)),
        ("init_continuous_batching", ()),
        ("continuous_batching_context_manager", ()),
        ("train", ()),
        ("train", (True,)),
        ("requires_grad_", ()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused_with_advice(operation, arguments, model, name, zoo_stock):
    with pytest.raises(UnsupportedError, match="streamed model") as caught:
        getattr(model, operation)(*arguments)
    assert caught.value.operation == operation
    assert caught.value.advice
    assert_intact(model, name, zoo_stock)


def assert_intact(model, name, zoo_stock) -> None:
    inputs = ZOO[name].inputs(seed=1)
    assert torch.equal(logits(model, inputs), logits(zoo_stock(name, BF16), inputs))


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((torch.float32,), {}),
        ((), {"dtype": torch.float16}),
        (("meta",), {}),
        (("cuda",), {}),
        ((torch.device("cuda", 0), torch.bfloat16), {}),
        ((torch.zeros(1, dtype=torch.float16),), {}),
    ],
    ids=str,
)
def test_moving_and_casting_are_refused(arguments, options, model, name, zoo_stock):
    with pytest.raises(UnsupportedError, match="not possible on a streamed model"):
        model.to(*arguments, **options)
    assert_intact(model, name, zoo_stock)


PARTS = ["model", "model.layers", "model.layers.1", "model.layers.1.mlp", "model.layers.1.mlp.experts"]


@pytest.mark.parametrize("part", PARTS)
def test_parts_with_experts_refuse_what_the_model_refuses(part, model, name, zoo_stock, tmp_path):
    module = model.get_submodule(part)
    operations = {
        "state_dict": (),
        "load_state_dict": ({},),
        "half": (),
        "float": (),
        "bfloat16": (),
        "type": (torch.float16,),
        "to_empty": (),
        "cuda": (),
        "to": (torch.float16,),
        "train": (),
        "requires_grad_": (),
    }
    if part == "model":
        operations |= {"save_pretrained": (tmp_path / "saved",), "push_to_hub": ("me/it",), "add_adapter": (None,)}
        operations |= {"load_adapter": ("an-adapter",)}
    for operation, arguments in operations.items():
        with pytest.raises(UnsupportedError, match="streamed model") as caught:
            getattr(module, operation)(*arguments)
        assert caught.value.operation == operation
    for duplicate in (copy.deepcopy, pickle.dumps):
        with pytest.raises(UnsupportedError, match="streamed model"):
            duplicate(module)
    assert not (tmp_path / "saved").exists()
    assert module.to(BF16) is module
    assert module.eval() is module
    assert_intact(model, name, zoo_stock)


def test_parts_without_experts_are_as_ever(model, name, zoo_stock):
    for part in ("model.layers.0.self_attn", "model.embed_tokens", "lm_head"):
        ours, theirs = (it.get_submodule(part).state_dict() for it in (model, zoo_stock(name, BF16)))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        copy.deepcopy(model.get_submodule(part))


def test_a_wrapped_model_refuses_its_state_too(model):
    wrapper = torch.nn.Sequential(model)
    with pytest.raises(UnsupportedError, match=r"state_dict\(\)"):
        wrapper.state_dict()
    with pytest.raises(UnsupportedError, match="cannot be trained"):
        wrapper.train()
    assert wrapper.eval() is wrapper


@pytest.mark.parametrize("argument", [BF16, "cpu", torch.device("cpu"), torch.zeros(1, dtype=BF16)], ids=str)
def test_moving_to_where_it_is_does_nothing(argument, model):
    assert model.to(argument) is model


def test_evaluation_mode_stays(model):
    assert model.eval() is model
    assert model.train(False) is model
    assert not any(module.training for module in model.modules())


def test_gradients_are_refused_where_they_would_be_wrong(model, name, zoo_stock):
    embeds = model.get_input_embeddings()(ZOO[name].inputs(seed=1)["input_ids"]).requires_grad_()
    with pytest.raises(UnsupportedError, match="cannot be trained"):
        model(inputs_embeds=embeds)
    with torch.no_grad():
        result = model(inputs_embeds=embeds).logits
    assert torch.equal(result, logits(zoo_stock(name, BF16), ZOO[name].inputs(seed=1)))


@pytest.mark.parametrize("tokens", [1, 24])
def test_gradients_of_the_last_router_are_refused(tokens, model, name):
    router = model.model.layers[-1].mlp.get_submodule("gate" if name == "qwen3_moe" else "router")
    router.weight.requires_grad_()
    with pytest.raises(UnsupportedError, match="cannot be trained"):
        model(**ZOO[name].inputs(length=tokens))
    with torch.no_grad():
        model(**ZOO[name].inputs(length=tokens))


# --- adapters ---------------------------------------------------------------------------------------------------------

DENSE_LORA = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
EXPERT_LORA = "base_model.model.model.layers.1.mlp.experts.lora_A.default.weight"


class Wrapped(torch.nn.Module):
    """A model below the names that peft gives it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.base_model = torch.nn.Module()
        self.base_model.model = model


@pytest.mark.parametrize("strict", [False, True])
def test_an_adapters_weights_for_experts_are_not_dropped_silently(strict, model, name, zoo_stock):
    with pytest.raises(UnsupportedError, match="belongs to experts that are not in memory") as caught:
        Wrapped(model).load_state_dict({EXPERT_LORA: torch.zeros(2, 2)}, strict=strict)
    assert caught.value.tensor == EXPERT_LORA
    assert "merge_and_unload" in caught.value.advice
    assert_intact(model, name, zoo_stock)


def test_dense_weights_can_be_loaded_past_the_guards(model, name):
    key = "base_model.model.lm_head.weight"
    Wrapped(model).load_state_dict({key: torch.zeros_like(model.lm_head.weight)}, strict=False)
    assert not logits(model, ZOO[name].inputs()).any()


@pytest.fixture
def peft():
    return pytest.importorskip("peft")


def adapter(peft, zoo_checkpoint, directory, **targets):
    """Saves an adapter of the stock model."""
    from zoo import stock

    model = peft.get_peft_model(stock(zoo_checkpoint("qwen3_moe", BF16), BF16), peft.LoraConfig(**targets))
    model.save_pretrained(directory)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("targets", [{"target_parameters": ["experts.gate_up_proj"]}, {}], ids=["experts", "dense"])
def test_peft_is_refused(targets, peft, zoo_checkpoint, zoo_store, open_model, tmp_path):
    """It looks at the whole state, and leaves out of an adapter, with a warning at most, what it does not find."""
    adapter(peft, zoo_checkpoint, tmp_path, target_modules=["q_proj"], **targets)
    model = open_model(zoo_store("qwen3_moe", BF16))
    with pytest.raises(UnsupportedError, match="merge_and_unload"):
        peft.PeftModel.from_pretrained(model, tmp_path)
    for operation in ("add_adapter", "load_adapter"):
        with pytest.raises(UnsupportedError, match="merge_and_unload"):
            getattr(model, operation)(tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("targets", [{"target_parameters": ["experts.gate_up_proj"]}, {"target_modules": ["experts"]}])
def test_peft_finds_no_experts_to_train(targets, peft, zoo_store, open_model):
    with pytest.raises(ValueError):
        peft.get_peft_model(open_model(zoo_store("qwen3_moe", BF16)), peft.LoraConfig(**targets))


@pytest.mark.filterwarnings("ignore")
def test_training_a_peft_adapter_of_dense_layers_is_refused(peft, zoo_store, open_model):
    model = peft.get_peft_model(open_model(zoo_store("qwen3_moe", BF16)), peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(UnsupportedError, match="cannot be trained"):
        model(**ZOO["qwen3_moe"].inputs())


def test_no_parameter_asks_for_gradients(model):
    assert not any(parameter.requires_grad for parameter in model.parameters())


def standin(model):
    return next(m for path, m in model.named_modules() if path.endswith(".experts")).gate_up_proj


@pytest.mark.parametrize(
    "use",
    [
        lambda it: it[0],
        lambda it: it[torch.tensor(0)],
        lambda it: it[torch.tensor([0, 1])],
        lambda it: it[:2],
        lambda it: list(it),
        lambda it: it.float(),
        lambda it: it.data,
        lambda it: it.transpose(1, 2),
        lambda it: it.numpy(),
    ],
    ids=["int", "scalar", "ids", "slice", "iterate", "float", "data", "transpose", "numpy"],
)
def test_experts_cannot_be_had_outside_of_a_forward_pass(use, model):
    with pytest.raises(UnsupportedError):
        use(standin(model))


def test_experts_are_no_tensors(model):
    with pytest.raises(TypeError):
        torch.stack([standin(model)])
    assert not any("gate_up_proj" in name for name, _ in [*model.named_parameters(), *model.named_buffers()])


def test_stand_ins_know_their_shape(model, name, zoo_stock):
    stock = dict(zoo_stock(name, BF16).named_parameters())["model.layers.0.mlp.experts.gate_up_proj"]
    assert (standin(model).shape, standin(model).dtype) == (stock.shape, stock.dtype)


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_another_experts_implementation_changes_nothing(implementation, model, name, zoo_stock):
    model.set_experts_implementation(implementation)
    assert_intact(model, name, zoo_stock)


@pytest.mark.parametrize(
    ("duplicate", "spoken"), [(copy.deepcopy, r"deepcopy\(\)"), (pickle.dumps, "Pickling")], ids=["deepcopy", "pickle"]
)
def test_copies_are_refused(duplicate, spoken, model, name, zoo_stock):
    with pytest.raises(UnsupportedError, match=rf"{spoken}.*coterie\.load"):
        duplicate(model)
    assert_intact(model, name, zoo_stock)


# --- what is left of the plug-in --------------------------------------------------------------------------------------


@pytest.mark.parametrize("zoo_name", ["qwen3_moe", "jamba", "qwen3_omni", "qwen3_vl_moe"])
def test_the_configuration_has_no_traces(zoo_name, zoo_store, zoo_stock, open_model, tmp_path):
    streamed = open_model(zoo_store(zoo_name, BF16))
    for module in streamed.modules():
        config = getattr(module, "config", None)
        assert not hasattr(config, "quantization_config")
        assert not hasattr(config, "_is_quantized")
    assert not getattr(streamed, "is_quantized", False)
    assert getattr(streamed, "hf_quantizer", None) is None
    streamed.config.save_pretrained(tmp_path)
    zoo_stock(zoo_name, BF16).config.save_pretrained(tmp_path / "stock")
    ours, theirs = (json.loads((path / "config.json").read_text()) for path in (tmp_path, tmp_path / "stock"))
    for config in (ours, theirs):
        # Filled in for speech in answer to picture and sound, in one of them perhaps by another test.
        config.get("talker_config", {}).pop("audio_config", None)
    assert ours == theirs


@pytest.mark.parametrize("zoo_name", ["qwen3_moe", "qwen3_omni"])
def test_the_generation_config_is_the_checkpoints(zoo_name, zoo_store, zoo_stock, open_model):
    streamed, stock = open_model(zoo_store(zoo_name, BF16)), zoo_stock(zoo_name, BF16)
    assert streamed.generation_config.to_dict() == stock.generation_config.to_dict()


def test_a_generation_config_with_settings_is_kept(zoo_checkpoint, open_model, tmp_path):
    import shutil

    directory = shutil.copytree(zoo_checkpoint("qwen3_moe", BF16), tmp_path / "copy")
    settings = json.loads((directory / "generation_config.json").read_text()) | {"temperature": 0.25, "do_sample": True}
    (directory / "generation_config.json").write_text(json.dumps(settings))
    assert open_model(directory).generation_config.temperature == 0.25


def test_dense_parameters_are_those_of_stock(model, name, zoo_stock):
    ours, theirs = dict(model.named_parameters()), dict(zoo_stock(name, BF16).named_parameters())
    assert set(theirs) - set(ours) == {n for n in theirs if ".experts." in n}
    assert set(ours) <= set(theirs)
    assert all(torch.equal(ours[n], theirs[n]) and ours[n].dtype == theirs[n].dtype for n in ours)


def test_a_closed_model_says_so(model, name):
    logits(model, ZOO[name].inputs())
    model.coterie.close()
    model.coterie.close()
    with pytest.raises(CoterieError, match="closed"):
        logits(model, ZOO[name].inputs())
