"""Code predictors in a scheme: native for whole frames, the class's own for everything else, and near it."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from torch import nn

from coterie.errors import UsageError
from coterie.hf.code_predictor import predicting
from coterie.integration import install_native_layers, install_native_norms
from coterie.integration.code_predictor import FrameCache, NativeCodePredictor
from coterie.kernels import QuantisedLinear
from coterie.native import DenseDecoder
from coterie.passes.forwards import own, remove
from coterie.quant import SCHEMES, stored_linear
from zoo.omni import omni_config

pytestmark = pytest.mark.usefixtures("native")

COUNT = 3


def in_scheme(model: nn.Module, scheme: str) -> None:
    """Gives linear layers weights in a scheme."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            matrix = stored_linear(name, *module.weight.shape, SCHEMES[scheme])
            if matrix is None:
                continue
            layer = QuantisedLinear(module, matrix)
            layer.fill(*matrix.quantise(module.weight.detach()))
            model.set_submodule(name, layer)


def predictor_of(scheme: str | None, **changes: Any) -> Any:
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import (
        Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration as Predictor,
    )

    torch.manual_seed(0)
    config = omni_config(whole_groups=True).talker_config.code_predictor_config
    for name, value in changes.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        model = Predictor._from_config(config, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)  # so that one code is far more likely than another
    model.requires_grad_(False)
    if scheme is not None:
        in_scheme(model, scheme)
    install_native_norms(model)
    install_native_layers(model)
    return model


@pytest.fixture(params=["int8", "int4"])
def predictor(request: pytest.FixtureRequest) -> Any:
    return predictor_of(request.param)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every pass that was computed natively."""
    seen: list[int] = []
    original = DenseDecoder.__call__

    def call(self, sequence, embeddings, head):
        seen.append(len(embeddings))
        return original(self, sequence, embeddings, head)

    monkeypatch.setattr(DenseDecoder, "__call__", call)
    return seen


def beginning(predictor: Any, frame: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frame)
    return torch.randn(1, 2, predictor.config.hidden_size, generator=generator).bfloat16()


def codes(predictor: Any, frame: int, **options: Any) -> torch.Tensor:
    torch.manual_seed(frame)
    with predicting(predictor):
        made = predictor.generate(
            inputs_embeds=beginning(predictor, frame), max_new_tokens=COUNT, output_hidden_states=True,
            return_dict_in_generate=True, **options,
        )  # fmt: skip
    return made.sequences


def logits_of(predictor: Any, frame: int, said: torch.Tensor) -> list[torch.Tensor]:
    """Of all passes of a frame whose codes are given."""
    with torch.no_grad():
        outputs = predictor(inputs_embeds=beginning(predictor, frame), use_cache=True)
        found = [outputs.logits[:, -1].float()]
        for step in range(1, COUNT):
            kept = {name: one for name, one in outputs.items() if hasattr(one, "get_seq_length")}
            outputs = predictor(input_ids=said[:, step - 1 : step], generation_steps=step, use_cache=True, **kept)
            found.append(outputs.logits[:, -1].float())
    return found


def test_logits_are_near_the_class_s_own(predictor: Any, passes: list[int]) -> None:
    assert isinstance(own(predictor), NativeCodePredictor)
    said = [codes(predictor, frame, do_sample=False) for frame in range(6)]
    passes.clear()
    got = [logits_of(predictor, frame, one) for frame, one in enumerate(said)]
    assert passes == [2, 1, 1] * 6
    for module in [one for one in predictor.modules() if own(one) is not None]:
        remove(module, "native")
    want = [logits_of(predictor, frame, one) for frame, one in enumerate(said)]
    assert len(passes) == 18
    for ours, theirs in zip(chain(*got), chain(*want), strict=True):
        assert (ours - theirs).norm() < 0.03 * theirs.norm()


def test_every_frame_of_an_answer_is_native(predictor: Any, passes: list[int]) -> None:
    found = [codes(predictor, frame, do_sample=True, top_k=20) for frame in range(4)]
    assert passes == [2, 1, 1] * 4
    assert len({tuple(one[0].tolist()) for one in found}) == 4
    assert all(map(torch.equal, found, [codes(predictor, frame, do_sample=True, top_k=20) for frame in range(4)]))


def test_codes_do_not_depend_on_threads(predictor: Any) -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(torch.cat([codes(predictor, frame, do_sample=True) for frame in range(4)]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_predictor_of_its_own_dtype_is_left_alone() -> None:
    predictor = predictor_of(None)
    assert not any(isinstance(own(one), NativeCodePredictor) for one in predictor.modules())


@pytest.mark.parametrize(
    "changes", [{"hidden_act": "tanh"}, {"intermediate_size": 48}, {"intermediate_size": 80}], ids=str
)
def test_what_is_not_served_is_the_class_s(changes: dict[str, Any], passes: list[int]) -> None:
    predictor = predictor_of("int8", **changes)
    assert own(predictor) is None
    assert codes(predictor, 1, do_sample=False).shape == (1, COUNT)
    assert not passes


def test_transformers_own_loop_goes_through_the_class(predictor: Any, passes: list[int]) -> None:
    made = predictor.generate(inputs_embeds=beginning(predictor, 1), max_new_tokens=COUNT, do_sample=False)
    assert made.shape == (1, COUNT)
    assert not passes


PLACES = ["model", "model.layers.0", "model.layers.1.self_attn.k_proj", "model.layers.1.mlp.up_proj", "lm_head.1"]


@pytest.mark.parametrize("place", PLACES)
def test_hooks_are_called_while_they_are_there(place: str, predictor: Any, passes: list[int]) -> None:
    seen: list[object] = []
    handle = predictor.get_submodule(place).register_forward_hook(lambda *_: seen.append(1))
    codes(predictor, 1, do_sample=False)
    assert len(seen) == (1 if place == "lm_head.1" else COUNT)
    assert not passes
    handle.remove()
    codes(predictor, 1, do_sample=False)
    assert len(passes) == COUNT


def test_another_forward_is_called(predictor: Any, passes: list[int]) -> None:
    module, calls = predictor.model.layers[0].mlp, []
    forward = module.forward
    module.forward = lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    codes(predictor, 1, do_sample=False)
    assert len(calls) == COUNT
    assert not passes


@pytest.mark.parametrize("replaced", [True, False])
def test_a_weight_of_one_s_own_is_used(replaced: bool, predictor: Any, passes: list[int]) -> None:
    said = codes(predictor, 1, do_sample=False)
    before = logits_of(predictor, 1, said)
    passes.clear()
    weight = predictor.model.layers[0].input_layernorm.weight
    with torch.no_grad():
        if replaced:
            predictor.model.layers[0].input_layernorm.weight = nn.Parameter(3 * weight, requires_grad=False)
        else:
            weight.mul_(3)
    after = logits_of(predictor, 1, said)
    assert not passes
    assert not torch.allclose(before[0], after[0], rtol=0.05)


@pytest.mark.parametrize("odd", [{"generation_steps": 2}, {"output_hidden_states": True}, {"input_ids": None}], ids=str)
def test_a_frame_goes_on_with_its_next_code_only(odd: dict[str, Any], predictor: Any) -> None:
    outputs = predictor(inputs_embeds=beginning(predictor, 1), use_cache=True)
    (kept,) = ({name: one} for name, one in outputs.items() if isinstance(one, FrameCache))
    asked = {"input_ids": torch.tensor([[3]]), "generation_steps": 1, "use_cache": True} | kept | odd
    with pytest.raises(UsageError, match="goes on with its next code"):
        predictor(**asked)


def test_gradients_and_batches_are_the_class_s(predictor: Any, passes: list[int]) -> None:
    several = beginning(predictor, 1).repeat(2, 1, 1)
    assert predictor(inputs_embeds=several, use_cache=True).logits.shape[0] == 2
    assert predictor(inputs_embeds=beginning(predictor, 1)).logits.shape[:2] == (1, 2)  # no cache is asked for
    assert not passes
