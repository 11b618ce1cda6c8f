"""Every tensor of a checkpoint is claimed exactly once, and what is absent or foreign is named."""

from collections import Counter

import pytest
import torch

from coterie.errors import TensorMissingError
from coterie.hf.keymap import KeyMap, map_keys
from zoo import ZOO, load

NAMES = sorted(ZOO)
DTYPES = (torch.float32, torch.bfloat16)
COMPONENTS = ("thinker", "talker")


def expert_names(keymap: KeyMap) -> list[str]:
    sources = [source for fields in keymap.experts.values() for source in fields.values()]
    return [name for source in sources for names in source.names.values() for name in names]


def claims(keymap: KeyMap) -> Counter[str]:
    return Counter([*keymap.dense, *expert_names(keymap), *keymap.ignored, *keymap.outside, *keymap.unclaimed])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_is_claimed_once(name, dtype, subject_of):
    subject = subject_of(name, dtype)
    keymap = subject.keymap
    assert claims(keymap) == Counter(subject.names)
    assert (keymap.unclaimed, keymap.missing, keymap.ignored, keymap.outside) == ([], [], [], [])


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_of_every_bank_has_a_source(name, subject_of):
    keymap = subject_of(name).keymap
    assert keymap.banks
    assert {bank.key: list(bank.parameters) for bank in keymap.banks} == {
        key: [p for p in next(b for b in keymap.banks if b.key == key).parameters if p in fields]
        for key, fields in keymap.experts.items()
    }
    assert len({bank.key for bank in keymap.banks}) == len(keymap.banks)


@pytest.mark.parametrize("name", NAMES)
def test_banks_describe_the_stock_model(name, subject_of):
    subject = subject_of(name)
    model, _ = load(subject.directory, torch.float32)
    for bank in subject.keymap.banks:
        module = model.get_submodule(bank.path)
        parameters = dict(module.named_parameters(recurse=False))
        assert {p: tuple(parameters[p].shape) for p in bank.parameters} == {
            p: (bank.num_experts, *shape) for p, shape in bank.parameters.items()
        }
        assert set(parameters) == set(bank.parameters)
        assert (bank.num_experts, bank.top_k) == (8, 2)


@pytest.mark.parametrize("name", NAMES)
def test_dense_targets_are_the_rest_of_the_model(name, subject_of):
    subject = subject_of(name)
    stacked = {f"{bank.path}.{p}" for bank in subject.keymap.banks for p in bank.parameters}
    tied = set(subject.model.all_tied_weights_keys) | set(subject.model.all_tied_weights_keys.values())
    rest = set(subject.model.state_dict()) - stacked
    assert rest - tied <= set(subject.keymap.dense.values()) <= rest


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_component_claims_its_part_of_omni(component, subject_of):
    subject = subject_of("qwen3_omni", torch.float32, component)
    keymap = subject.keymap
    assert claims(keymap) == Counter(subject.names)
    assert (keymap.unclaimed, keymap.missing, keymap.ignored) == ([], [], [])
    assert keymap.outside == sorted(n for n in subject.names if not n.startswith(f"{component}."))
    assert {bank.key.component for bank in keymap.banks} == {component}
    whole = subject_of("qwen3_omni").keymap
    assert [bank.key for bank in keymap.banks] == [b.key for b in whole.banks if b.key.component == component]


def test_the_whole_of_omni_has_banks_of_both_components(subject_of):
    keys = [(b.key.component, b.key.layer, b.key.bank) for b in subject_of("qwen3_omni").keymap.banks]
    assert keys == [(component, layer, "mlp") for component in COMPONENTS for layer in (0, 1)]


def test_a_foreign_tensor_is_unclaimed(subject_of):
    subject = subject_of("qwen3_moe")
    keymap = map_keys(subject.model, [*subject.names, "model.layers.0.mlp.adapter.weight"])
    assert keymap.unclaimed == ["model.layers.0.mlp.adapter.weight"]


def test_a_prediction_head_that_transformers_ignores_is_ignored(subject_of):
    subject = subject_of("qwen3_next")
    extra = ["mtp.fc.weight", "mtp.layers.0.mlp.experts.0.gate_proj.weight"]
    keymap = map_keys(subject.model, [*subject.names, *extra])
    assert (keymap.ignored, keymap.unclaimed) == (sorted(extra), [])
    assert claims(keymap) == Counter([*subject.names, *extra])


def test_an_absent_dense_tensor_is_missing(subject_of):
    subject = subject_of("deepseek_v3")
    absent = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert absent in subject.names
    assert map_keys(subject.model, [n for n in subject.names if n != absent]).missing == [absent]


@pytest.mark.parametrize("name", ["ernie4_5_moe", "lfm2_moe"])
def test_a_tied_head_is_not_missing(name, subject_of):
    subject = subject_of(name)
    assert not any("lm_head" in n for n in subject.names)
    assert subject.keymap.missing == []


@pytest.mark.parametrize("expert", [0, 3, 7])
def test_an_absent_expert_is_named(expert, subject_of):
    subject = subject_of("qwen3_moe")
    absent = f"model.layers.1.mlp.experts.{expert}.up_proj.weight"
    with pytest.raises(TensorMissingError) as caught:
        map_keys(subject.model, [n for n in subject.names if n != absent])
    assert caught.value.tensor == "model.layers.1.mlp.experts.gate_up_proj"


def test_one_absent_projection_of_all_experts_is_named(subject_of):
    subject = subject_of("mixtral")
    kept = [n for n in subject.names if not ("layers.0" in n and n.endswith("w3.weight"))]
    with pytest.raises(TensorMissingError, match="w3"):
        map_keys(subject.model, kept)


def test_an_absent_bank_is_missing(subject_of):
    subject = subject_of("granitemoe")
    kept = [n for n in subject.names if not n.startswith("model.layers.1.block_sparse_moe.")]
    missing = map_keys(subject.model, kept).missing
    assert any("layers.1" in name and "router" in name for name in missing)
    assert sum("layers.1" in name and "experts" in name for name in missing) == 2


def test_more_experts_than_the_configuration_says_is_an_error(subject_of):
    subject = subject_of("qwen3_moe")
    more = [f"model.layers.0.mlp.experts.8.{p}_proj.weight" for p in ("gate", "up", "down")]
    with pytest.raises(TensorMissingError, match="needs 8 tensors"):
        map_keys(subject.model, [*subject.names, *more])


def test_the_order_of_names_does_not_matter(subject_of):
    subject = subject_of("qwen3_moe")
    backwards = map_keys(subject.model, reversed(subject.names))
    assert {k: {p: s.names for p, s in f.items()} for k, f in backwards.experts.items()} == {
        k: {p: s.names for p, s in f.items()} for k, f in subject.keymap.experts.items()
    }
    assert backwards.dense == subject.keymap.dense
