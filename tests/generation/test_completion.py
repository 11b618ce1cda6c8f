import pytest
import torch

from coterie.engine.loader import load
from coterie.errors import ContextLengthError
from coterie.generation.completion import Completion, complete
from coterie.generation.inputs import build_inputs
from coterie.generation.sampling import Sampling

GREEDY = Sampling(max_new_tokens=6, greedy=True)


@pytest.fixture(scope="module")
def model(bundled):
    opened = load(bundled, expert_memory="50%")
    yield opened
    opened.coterie.close()


def ask(model, processors, prompt="And it came to pass", sampling=GREEDY, **options) -> Completion:
    return complete(model, processors.tokenizer, build_inputs(processors, prompt), sampling, **options)


def test_the_tokens_are_those_of_generate(model, processors) -> None:
    inputs = build_inputs(processors, "And it came to pass")
    expected = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    pieces: list[str] = []
    answer = ask(model, processors, on_text=pieces.append)
    assert list(answer.token_ids) == expected.tolist()
    assert "".join(pieces) == answer.text == processors.tokenizer.decode(expected)
    assert (answer.finish_reason, answer.prompt_tokens) == ("length", inputs["input_ids"].shape[1])
    assert answer.prefill_tokens_per_s > 0
    assert answer.decode_tokens_per_s > 0


def test_the_end_token_is_told_apart_from_the_limit(model, processors, data) -> None:
    inputs = build_inputs(processors, "", audios=[data / "dog.wav"])
    answer = complete(model, processors.tokenizer, inputs, Sampling(max_new_tokens=20, greedy=True))
    assert (answer.text, answer.finish_reason, answer.token_ids[-1]) == ("dog", "stop", 0)


def test_a_seed_repeats(model, processors) -> None:
    wishes = Sampling(max_new_tokens=6, temperature=1.5, seed=11)
    assert ask(model, processors, sampling=wishes).token_ids == ask(model, processors, sampling=wishes).token_ids
    other = Sampling(max_new_tokens=6, temperature=1.5, seed=12)
    assert ask(model, processors, sampling=wishes).token_ids != ask(model, processors, sampling=other).token_ids


def test_stopping_keeps_what_came_and_the_model_goes_on_working(model, processors) -> None:
    whole = ask(model, processors)
    pieces: list[str] = []
    part = ask(model, processors, on_text=pieces.append, should_stop=lambda: len(pieces) >= 2)
    assert part.finish_reason == "interrupted"
    assert 2 <= len(part.token_ids) < len(whole.token_ids)
    assert part.token_ids == whole.token_ids[: len(part.token_ids)]
    assert ask(model, processors).token_ids == whole.token_ids


def test_a_prefill_can_be_stopped(model, processors) -> None:
    before = model.coterie.stats().prefill_tokens
    answer = ask(model, processors, should_stop=lambda: True)
    assert (answer.token_ids, answer.text, answer.finish_reason) == ((), "", "interrupted")
    assert answer.decode_tokens_per_s == 0
    assert model.coterie.stats().prefill_tokens != before  # it was the forward pass that was stopped


@pytest.mark.parametrize("memory", [{"memory": "8GiB"}, {"expert_memory": "50%"}], ids=["budget", "experts alone"])
def test_generation_ends_where_the_memory_budget_does(bundled, processors, memory) -> None:
    inputs = build_inputs(processors, "And it came to pass")
    length = inputs["input_ids"].shape[1]
    model = load(bundled, **memory, max_context=length + 2)
    try:
        answer = complete(model, processors.tokenizer, inputs, GREEDY)
        assert (len(answer.token_ids), answer.finish_reason) == (3, "context")
        with pytest.raises(ContextLengthError):
            ask(model, processors, "And it came to pass, that he went up to the city of David")
    finally:
        model.coterie.close()


def test_results_need_no_gradients(model, processors) -> None:
    assert torch.is_grad_enabled()
    ask(model, processors)
    assert torch.is_grad_enabled()
