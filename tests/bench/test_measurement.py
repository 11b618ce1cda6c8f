"""What a measurement says agrees with what the model counted."""

import pytest
import torch

from coterie.bench import measure
from coterie.errors import UsageError
from zoo import ZOO

BF16 = torch.bfloat16


@pytest.mark.parametrize("memory", ["25%", "100%"])
def test_figures_are_those_of_the_decode_steps(memory, zoo_store, open_model):
    model = open_model(zoo_store("qwen3_moe", BF16), expert_memory=memory)
    prompt = ZOO["qwen3_moe"].inputs(seed=1)["input_ids"]
    counts = []
    run = measure(model, prompt, 6, on_token=counts.append)
    stats = model.coterie.stats()
    total = stats.total
    assert counts == [1, 2, 3, 4, 5, 6]
    assert (run.prompt_tokens, run.new_tokens) == (prompt.shape[1], 6)
    assert run.hit_rate == pytest.approx(total.decode_hit_rate)
    assert run.prefill_bytes_read + 5 * run.bytes_per_token == pytest.approx(total.bytes_read)
    assert run.prefill_bytes_read > 0
    assert run.capacity == stats.capacity
    assert run.total_expert_bytes == stats.total_expert_bytes
    low, high = run.step_quartiles_s
    assert 0 < low <= run.step_s <= high <= run.decode_s
    assert run.memory > 2**20


def test_a_second_run_counts_only_itself(zoo_store, open_model):
    model = open_model(zoo_store("qwen3_moe", BF16), expert_memory="100%")
    prompt = ZOO["qwen3_moe"].inputs(seed=1)["input_ids"]
    first, second = (measure(model, prompt, 4) for _ in range(2))
    assert first.prefill_bytes_read > 0
    assert (second.prefill_bytes_read, second.bytes_per_token, second.hit_rate) == (0, 0, 1)


def test_too_few_tokens(zoo_store, open_model):
    model = open_model(zoo_store("qwen3_moe", BF16))
    with pytest.raises(UsageError, match="at least 3"):
        measure(model, ZOO["qwen3_moe"].inputs()["input_ids"], 2)
