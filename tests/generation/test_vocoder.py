"""Frames that come one by one, or some at a time, make the sound of one decode of them all."""

from __future__ import annotations

import pytest
import torch
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeCode2Wav

from coterie.generation.vocoder import Vocoder
from zoo.omni import omni_config

FRAMES = 40


@pytest.fixture(scope="module")
def code2wav():
    torch.manual_seed(0)
    # In float64, what is left out or counted twice is not mistaken for rounding.
    model = Qwen3OmniMoeCode2Wav._from_config(omni_config().code2wav_config, dtype=torch.float64).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture
def codes(code2wav):
    shape = (code2wav.config.num_quantizers, FRAMES)
    return torch.randint(code2wav.config.codebook_size, shape, generator=torch.Generator().manual_seed(1))


def whole(code2wav, codes):
    with torch.no_grad():
        return code2wav(codes[None]).reshape(-1)


@pytest.mark.parametrize("sizes", [(1,), (8, 25), (3, 1, 11), (FRAMES,)])
def test_chunks_are_the_sound_of_the_whole(sizes, code2wav, codes) -> None:
    vocoder, chunks, begin = Vocoder(code2wav), [], 0
    while begin < FRAMES:
        size = sizes[min(len(chunks), len(sizes) - 1)]
        chunks.append(vocoder.decode(codes[:, begin : begin + size]))
        begin += size
    expected = whole(code2wav, codes)
    found = torch.cat(chunks)
    assert found.shape == expected.shape
    assert expected.std() > 1e-3
    assert expected.abs().max() < 1
    assert (found - expected).abs().max() <= 1e-7
    frame = code2wav.total_upsample
    assert all(len(chunk) == size * frame for chunk, size in zip(chunks[1:-1], sizes[1:], strict=False))


def test_longer_sound_has_no_hole_where_transformers_has_one(code2wav, codes) -> None:
    long = codes.repeat(1, 8)
    found = Vocoder(code2wav).decode(long)
    stock = code2wav.chunked_decode(long[None], chunk_size=300, left_context_size=25).reshape(-1)
    assert len(found) > len(stock)
    assert (found - whole(code2wav, long)).abs().max() <= 1e-7


def test_with_the_released_strides_555_samples_are_missing_at_each_border() -> None:
    config = omni_config().code2wav_config
    config.upsample_rates, config.upsampling_ratios = [8, 5, 4, 3], [2, 2]
    model = Qwen3OmniMoeCode2Wav._from_config(config).eval()
    codes = torch.zeros(config.num_quantizers, 12, dtype=torch.long)
    with torch.no_grad():
        parted = model.chunked_decode(codes[None], chunk_size=6, left_context_size=0).shape[-1]
    one = len(Vocoder(model).decode(codes))
    assert one - parted == 555
    assert len(whole(model, codes)) == one == 12 * 1920 - 555


def test_two_answers_do_not_hear_each_other(code2wav, codes) -> None:
    one, other = Vocoder(code2wav), Vocoder(code2wav)
    backwards = codes.flip(1)
    mine, others = [], []
    for begin in range(0, FRAMES, 5):
        mine.append(one.decode(codes[:, begin : begin + 5]))
        others.append(other.decode(backwards[:, begin : begin + 5]))
    assert (torch.cat(mine) - whole(code2wav, codes)).abs().max() <= 1e-7
    assert (torch.cat(others) - whole(code2wav, backwards)).abs().max() <= 1e-7


def test_the_class_is_left_as_it_was(code2wav, codes) -> None:
    before = whole(code2wav, codes)
    vocoder = Vocoder(code2wav)
    with pytest.raises(IndexError):
        vocoder.decode(codes + code2wav.config.codebook_size * 100)
    vocoder.decode(codes[:, :3])
    assert torch.equal(whole(code2wav, codes), before)
    assert not [name for name, module in code2wav.named_modules() if "forward" in vars(module)]
