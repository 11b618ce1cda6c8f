"""Tensors that look into a slot."""

import pytest
import torch

from coterie.cache.arena import SlotArena
from coterie.quant.dtypes import TORCH_DTYPES
from coterie.spec import DTYPE_BYTES, RecordLayout

from .sources import LARGE, SMALL, assert_is, keys_of, record_bytes


@pytest.fixture
def slot():
    arena = SlotArena(LARGE.nbytes)
    return arena.acquire(LARGE.nbytes)


def test_every_safetensors_dtype_has_a_torch_dtype_of_its_size():
    assert TORCH_DTYPES.keys() == DTYPE_BYTES.keys()
    for name, dtype in TORCH_DTYPES.items():
        assert dtype.itemsize == DTYPE_BYTES[name], name


@pytest.mark.parametrize("dtype", sorted(DTYPE_BYTES))
def test_a_view_of_every_dtype_shows_the_bytes(slot, dtype):
    layout = RecordLayout.build("one", [("pad", "U8", (3,)), ("weight", dtype, (4, 5))])
    pattern = bytes(n % 2 for n in range(20 * DTYPE_BYTES[dtype]))
    slot.record[64 : 64 + len(pattern)] = pattern
    weight = slot.views(layout)[1]
    assert weight.shape == (4, 5)
    assert weight.dtype == TORCH_DTYPES[dtype]
    assert weight.view(torch.uint8).numpy().tobytes() == pattern


def test_views_share_memory_and_are_made_once_per_layout(slot):
    first, second = keys_of(2)
    slot.record[:] = record_bytes(first, LARGE)
    views = slot.views(LARGE)
    assert_is(first, LARGE, views)
    slot.record[:] = record_bytes(second, LARGE)
    assert_is(second, LARGE, views)
    assert slot.views(LARGE) is views
    assert slot.views(SMALL) is not views


def test_fields_start_on_64_byte_addresses(slot):
    assert all(tensor.data_ptr() % 64 == 0 for tensor in slot.views(SMALL))


def test_a_field_without_elements_is_an_empty_tensor(slot):
    layout = RecordLayout.build("odd", [("nothing", "F32", (0, 3)), ("scalar", "F32", ())])
    nothing, scalar = slot.views(layout)
    assert nothing.shape == (0, 3)
    assert scalar.shape == ()


def test_views_made_in_inference_mode_work_outside_it(slot):
    with torch.inference_mode():
        weight = slot.views(LARGE)[0]
    assert not weight.is_inference()
    assert not weight.requires_grad
