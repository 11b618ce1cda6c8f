import copy

import pytest
import torch

from coterie.engine.loader import load
from coterie.errors import UnsupportedError, UsageError
from zoo import ZOO, logits

BF16 = torch.bfloat16


def test_a_model_closes_at_the_end_of_its_block(zoo_store, zoo_stock):
    inputs = ZOO["qwen3_moe"].inputs()
    with load(zoo_store("qwen3_moe", BF16), expert_memory="50%") as model:
        stock = zoo_stock("qwen3_moe", BF16)
        assert isinstance(model, type(stock))
        assert type(model).__name__ == type(stock).__name__
        assert model.can_generate() == stock.can_generate()
        assert torch.equal(logits(model, inputs), logits(stock, inputs))
    with pytest.raises(UsageError, match="closed"):
        logits(model, inputs)


def test_an_error_in_the_block_is_not_hidden(zoo_store):
    def fail() -> None:
        with load(zoo_store("qwen3_moe", BF16), expert_memory="50%"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


def test_models_of_one_class_share_one(zoo_store, open_model):
    first, second = (open_model(zoo_store("qwen3_moe", BF16), expert_memory="50%") for _ in range(2))
    assert type(first) is type(second)


def test_copy_says_why_not(zoo_store, open_model):
    model = open_model(zoo_store("qwen3_moe", BF16), expert_memory="50%")
    with pytest.raises(UnsupportedError, match=r"copy\(\) is not possible") as caught:
        copy.copy(model)
    assert "itself" in caught.value.advice
    with pytest.raises(UnsupportedError, match="deepcopy"):
        copy.deepcopy(model)


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ({"device_map": "auto"}, "memory="),
        ({"dtype": torch.bfloat16}, "dtype that they have"),
        ({"torch_dtype": "auto"}, "dtype that they have"),
        ({"load_in_4bit": True}, "int4"),
        ({"trust_remote_code": True}, "never run"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_of_from_pretrained_have_advice(given, advice):
    with pytest.raises(UnsupportedError) as caught:
        load("bundled", **given)
    assert advice in caught.value.advice
    assert next(iter(given)) in str(caught.value)


def test_an_unknown_option_names_the_nearest():
    with pytest.raises(UsageError, match="max_contxt") as caught:
        load("bundled", max_contxt=3)
    assert "max_context" in str(caught.value)


def test_more_memory_than_there_is_is_remarked_on(zoo_store):
    with pytest.warns(UserWarning, match=r"memory=1.00 TiB is more than the .* that") as caught:
        load(zoo_store("qwen3_moe", BF16), memory="1TiB").coterie.close()
    assert caught[0].filename == __file__
