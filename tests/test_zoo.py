"""The zoo itself: its checkpoints are whole, its models route and speak as real ones do."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from zoo import ZOO, load, logits, stock

NAMES = sorted(ZOO)
DTYPES = (torch.float32, torch.bfloat16)


def require(name: str) -> None:
    if reason := ZOO[name].why_not:
        pytest.skip(reason)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    require(request.param)
    return request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reloads_whole_with_equal_logits(name, dtype, zoo_checkpoint):
    directory = zoo_checkpoint(name, dtype)
    built = ZOO[name].build(dtype)
    built.set_experts_implementation("eager")
    model, report = load(directory, dtype)
    assert {kind: keys for kind, keys in report.items() if keys} == {}
    inputs = ZOO[name].inputs(seed=1, batch=2)
    expected = logits(built, inputs)
    assert expected.dtype == dtype
    assert torch.equal(logits(model, inputs), expected)


def test_is_small(name, zoo_checkpoint):
    size = sum(file.stat().st_size for file in zoo_checkpoint(name, torch.float32).iterdir())
    assert 100_000 < size < 2_000_000


def test_sharded_checkpoint_is_the_same_model(name, zoo_checkpoint):
    whole, sharded = zoo_checkpoint(name), zoo_checkpoint(name, max_shard_size="200KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    inputs = ZOO[name].inputs(seed=2)
    assert torch.equal(logits(stock(sharded), inputs), logits(stock(whole), inputs))


def test_logits_tell_tokens_apart(name, zoo_stock):
    result = logits(zoo_stock(name, torch.float32), ZOO[name].inputs(seed=3, batch=4))
    assert torch.isfinite(result).all()
    assert 0.1 < result.std(dim=-1).mean() < 20
    assert result.argmax(dim=-1).unique().numel() > 20


def test_every_expert_is_used(name, zoo_stock):
    model, hooks = zoo_stock(name, torch.float32), []
    used: dict[str, set[int]] = {}
    for path, module in model.named_modules():
        if path.endswith(".experts") and not path.startswith("talker."):
            seen = used.setdefault(path, set())
            hook = module.register_forward_pre_hook(lambda _, args, seen=seen: seen.update(args[1].flatten().tolist()))
            hooks.append(hook)
    logits(model, ZOO[name].inputs(seed=4, batch=4, length=48))
    for hook in hooks:
        hook.remove()
    assert used
    assert all(seen == set(range(8)) for seen in used.values()), used


def test_generates_the_length_that_was_asked(name, zoo_stock):
    model = getattr(zoo_stock(name, torch.float32), "thinker", zoo_stock(name, torch.float32))
    inputs = ZOO[name].inputs(seed=5)
    output = model.generate(**inputs, max_new_tokens=9, do_sample=False)
    assert output.shape == (1, 24 + 9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [n for n in NAMES if len(ZOO[n].modalities) > 1])
def test_pictures_and_sounds_change_the_logits(name, dtype, zoo_stock):
    model = zoo_stock(name, dtype)
    for modality in ZOO[name].modalities[1:]:
        inputs = ZOO[name].inputs(seed=6, batch=2, length=32, **{modality: True})
        pixels = "pixel_values" if modality == "image" else "input_features"
        other = inputs | {pixels: -inputs[pixels]}
        assert not torch.equal(logits(model, inputs), logits(model, other))


@pytest.mark.parametrize("modality", ["text", "image", "audio"])
def test_omni_speaks(modality, zoo_stock):
    model = zoo_stock("qwen3_omni", torch.float32)
    wanted = {} if modality == "text" else {modality: True}
    inputs = ZOO["qwen3_omni"].inputs(seed=7, length=32, **wanted)
    limits = {"thinker_max_new_tokens": 5, "talker_max_new_tokens": 6, "talker_min_new_tokens": 6}
    ids, waveform = model.generate(**inputs, **limits, thinker_do_sample=False, talker_do_sample=False)
    assert ids.shape == (1, 32 + 5)
    assert waveform.shape[:2] == (1, 1)
    assert waveform.shape[2] > 100
    assert waveform.std() > 1e-3


def test_weights_do_not_depend_on_the_process(zoo_checkpoint, tmp_path: Path):
    first = zoo_checkpoint("qwen3_moe") / "model.safetensors"
    torch.manual_seed(1234)
    ZOO["qwen3_moe"].build().save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == first.read_bytes()


def test_checkpoint_names_are_those_of_released_models(zoo_checkpoint):
    with safe_open(zoo_checkpoint("qwen3_moe") / "model.safetensors", "pt") as file:
        assert "model.layers.0.mlp.experts.7.gate_proj.weight" in file.keys()


def test_unknown_modality_is_refused():
    with pytest.raises(ValueError, match="takes no audio"):
        ZOO["mixtral"].inputs(audio=True)
