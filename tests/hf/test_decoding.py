"""One expert decoded from a checkpoint is bit for bit the slice that stock transformers stacks."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from coterie.errors import CheckpointFileError
from coterie.hf.decoding import decode_field, is_plain
from zoo import ZOO, load

NAMES = sorted(ZOO)
DTYPES = (torch.float32, torch.bfloat16)

# Families whose file may hold the experts transposed, which the shapes tell.
NOT_PLAIN = {"qwen3_vl_moe": {"gate_up_proj", "down_proj"}}


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def fields(subject):
    for bank in subject.keymap.banks:
        for parameter, source in subject.keymap.experts[bank.key].items():
            yield bank, parameter, source


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_decodes_the_slices_of_the_stock_model(name, dtype, subject_of):
    subject = subject_of(name, dtype)
    model, _ = load(subject.directory, dtype)
    compared = 0
    for bank, parameter, source in fields(subject):
        stacked = model.get_parameter(f"{bank.path}.{parameter}")
        assert source.target == f"{bank.path}.{parameter}"
        for expert in range(bank.num_experts):
            decoded = decode_field(source, expert, subject.read, subject.model)
            assert decoded.dtype == dtype == bank.dtypes[parameter]
            assert decoded.is_contiguous()
            assert torch.equal(decoded, stacked[expert])
            compared += 1
    assert compared >= 2 * 8


@pytest.mark.parametrize("component", ["thinker", "talker"])
def test_decodes_a_component_like_the_whole(component, subject_of):
    part, whole = subject_of("qwen3_omni", torch.bfloat16, component), subject_of("qwen3_omni", torch.bfloat16)
    for bank, parameter, source in fields(part):
        other = whole.keymap.experts[bank.key][parameter]
        for expert in (0, 7):
            mine = decode_field(source, expert, part.read, part.model)
            assert torch.equal(mine, decode_field(other, expert, whole.read, whole.model))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_plain_fields_are_their_tensors_one_after_the_other(name, dtype, subject_of):
    subject = subject_of(name, dtype)
    for bank, _, source in fields(subject):
        if not is_plain(source):
            continue
        for expert in (0, bank.num_experts - 1):
            index = None if source.per_expert else expert
            joined = b"".join(bytes_of(subject.read(n, index)) for n in source.names_of(expert))
            assert joined == bytes_of(decode_field(source, expert, subject.read, subject.model))


@pytest.mark.parametrize("name", NAMES)
def test_which_fields_are_plain(name, subject_of):
    """Being plain is what makes running without extraction cheap: losing it unnoticed would be a regression."""
    subject = subject_of(name)
    got = {parameter for _, parameter, source in fields(subject) if not is_plain(source)}
    assert got == NOT_PLAIN.get(name, set())


def test_distinct_experts_decode_to_distinct_tensors(subject_of):
    subject = subject_of("gpt_oss")
    for bank, _, source in fields(subject):
        decoded = [decode_field(source, e, subject.read, subject.model) for e in range(bank.num_experts)]
        assert len({bytes_of(tensor) for tensor in decoded}) == bank.num_experts


def test_a_tensor_of_the_wrong_shape_is_a_file_error(subject_of):
    subject = subject_of("qwen3_moe")
    source = next(s for _, p, s in fields(subject) if p == "gate_up_proj")

    def read(name: str, index: int | None) -> torch.Tensor:
        tensor = subject.read(name, index)
        return tensor[:, :-1] if "gate_proj" in name else tensor

    with pytest.raises(CheckpointFileError, match="cannot be decoded") as caught:
        decode_field(source, 2, read, subject.model)
    assert caught.value.tensor == source.target


def test_decoding_leaves_the_source_as_it_was(subject_of):
    subject = subject_of("mixtral")
    for _, _, source in fields(subject):
        first = decode_field(source, 5, subject.read, subject.model)
        decode_field(source, 1, subject.read, subject.model)
        assert torch.equal(first, decode_field(source, 5, subject.read, subject.model))


def test_experts_that_lie_transposed_in_the_file_are_turned(subject_of, tmp_path):
    """Released Qwen3-VL checkpoints are transposed, those that transformers saves are not."""
    subject = subject_of("qwen3_vl_moe", torch.bfloat16)
    shutil.copytree(subject.directory, tmp_path, dirs_exist_ok=True)
    tensors = load_file(subject.directory / "model.safetensors")
    turned = {n: t.transpose(1, 2).contiguous() if ".mlp.experts." in n else t for n, t in tensors.items()}
    save_file(turned, tmp_path / "model.safetensors", {"format": "pt"})
    model, _ = load(tmp_path, torch.bfloat16)

    def read(name: str, index: int | None) -> torch.Tensor:
        return turned[name] if index is None else turned[name][index : index + 1]

    for bank, parameter, source in fields(subject):
        stacked = model.get_parameter(f"{bank.path}.{parameter}")
        for expert in range(bank.num_experts):
            decoded = decode_field(source, expert, read, subject.model)
            assert torch.equal(decoded, stacked[expert])
            assert torch.equal(decoded, decode_field(source, expert, subject.read, subject.model))
