"""Log probabilities of new tokens and of prompts."""

import pytest
import torch

from coterie.engine.loader import load
from coterie.evaluate import score
from coterie.generation.completion import Completion, complete
from coterie.generation.engine import Engine
from coterie.generation.grammar import Grammar
from coterie.generation.inputs import build_inputs
from coterie.generation.logprobs import LEAST, NewLogprobs, PromptLogprobs
from coterie.generation.sampling import Sampling

LONG = "And it came to pass, that he had been there, and the people of the city said unto him, Go now and see it. " * 3


@pytest.fixture(scope="module")
def model(bundled):
    opened = load(bundled, expert_memory="50%")
    yield opened
    opened.coterie.close()


def ask(model, processors, prompt="And it came to pass", *, on_text=None, on_logprobs=None, **sampling) -> Completion:
    wishes = Sampling(**({"max_new_tokens": 6, "temperature": 0} | sampling))
    inputs = build_inputs(processors, prompt)
    return complete(model, processors.tokenizer, inputs, wishes, on_text=on_text, on_logprobs=on_logprobs)


def test_they_are_the_models_whatever_is_drawn(model, processors) -> None:
    plain = ask(model, processors, logprobs=3)
    assert [one.token_id for one in plain.logprobs] == [one.top[0][0] for one in plain.logprobs]
    assert [one.logprob for one in plain.logprobs] == [one.top[0][1] for one in plain.logprobs]
    assert all(list(one.top) == sorted(one.top, key=lambda pair: -pair[1]) for one in plain.logprobs)
    first = plain.logprobs[0]
    other = ask(model, processors, logprobs=3, temperature=2.0, seed=4, logit_bias={first.token_id: -100})
    assert other.token_ids[0] != first.token_id
    assert other.logprobs[0].top == first.top


def test_they_come_with_their_pieces(model, processors) -> None:
    heard: list = []
    done = ask(model, processors, logprobs=0, on_text=heard.append, on_logprobs=heard.append)
    assert "".join(one for one in heard if isinstance(one, str)) == done.text
    for told, piece in zip(heard[::2], heard[1::2], strict=True):
        assert processors.tokenizer.decode([one.token_id for one in told]) == piece
    assert tuple(one for told in heard[::2] for one in told) == done.logprobs


def test_what_ends_an_answer_is_not_among_them(model, processors, data) -> None:
    whole = ask(model, processors, logprobs=0)
    cut = ask(model, processors, logprobs=0, stop=(" had",))
    assert (cut.text, len(cut.logprobs)) == (", that he", 3)
    assert cut.logprobs == whole.logprobs[:3]
    within = ask(model, processors, logprobs=0, stop=("ad",))  # in the middle of a token
    assert (within.text, len(within.logprobs)) == (", that he h", 4)
    inputs = build_inputs(processors, "", audios=[data / "dog.wav"])
    done = complete(model, processors.tokenizer, inputs, Sampling(temperature=0, logprobs=0))
    assert [one.token_id for one in done.logprobs] == list(done.token_ids[:-1])


@pytest.mark.parametrize("prompt", ["And it came to pass", LONG])
def test_those_of_a_prompt_are_those_of_evaluate(model, processors, prompt) -> None:
    """To the last bit, and what comes after the prompt is what comes without them."""
    plain = ask(model, processors, prompt, logprobs=2)
    done = ask(model, processors, prompt, logprobs=2, prompt_logprobs=2)
    assert (done.token_ids, done.logprobs) == (plain.token_ids, plain.logprobs)
    ids = build_inputs(processors, prompt)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    expected = score(logits, ids[0, 1:].tolist())
    assert [one.token_id for one in done.prompt_logprobs[1:]] == ids[0, 1:].tolist()
    assert [one.logprob for one in done.prompt_logprobs[1:]] == (-expected.loss).tolist()
    assert [one.top[0][0] for one in done.prompt_logprobs[1:]] == logits.argmax(-1).tolist()


def test_a_prompt_can_be_read_alone(model, processors) -> None:
    done = ask(model, processors, max_new_tokens=0, prompt_logprobs=1)
    assert (done.token_ids, done.text, done.finish_reason) == ((), "", "length")
    assert len(done.prompt_logprobs) == done.prompt_tokens


def test_of_a_first_token_nothing_is_told(model, processors) -> None:
    assert ask(model, processors, "a", prompt_logprobs=1).prompt_logprobs[0].logprob is None


def test_what_is_ruled_out_is_a_number() -> None:
    heard = NewLogprobs(2)
    heard(torch.tensor([[1]]), torch.tensor([[0.0, -torch.inf, -torch.inf]]))
    heard.came([1])
    assert (heard.entries[0].logprob, heard.entries[0].top[1][1]) == (LEAST, LEAST)


def test_rows_come_in_any_pieces() -> None:
    ids, logits = torch.arange(20) % 7, torch.randn(20, 7, generator=torch.Generator().manual_seed(0))
    whole, pieces = PromptLogprobs(ids, 2), PromptLogprobs(ids, 2)
    whole(logits)
    for part in (logits[:3], logits[3:4], logits[4:]):
        pieces(part)
    assert whole.entries == pieces.entries
    assert len(whole.entries) == 20


def test_under_load_they_are_those_of_a_request_alone(model, processors) -> None:
    """With others beside it that ask for other things, and each of its pieces has its tokens'."""
    asked = {
        "And it came to pass": {"logprobs": 2, "prompt_logprobs": 1},
        LONG: {"logprobs": 1, "prompt_logprobs": 0, "temperature": 1.3, "seed": 5},
        "Hello, how are you": {
            "grammar": Grammar.regex("[a-z]{3}( [a-z]{2}){2}!"),
            "logprobs": 0,
            "max_new_tokens": 30,
        },
        "def __init__(self": {"frequency_penalty": 1.5, "logit_bias": {21: -5}, "min_new_tokens": 3, "logprobs": 0},
        "春": {"stop": (" ",), "logprobs": 4, "ignore_eos": True},
    }
    alone = {prompt: ask(model, processors, prompt, **wishes) for prompt, wishes in asked.items()}
    with Engine(model, parallel=4) as engine:
        wishes = [Sampling(**({"max_new_tokens": 6, "temperature": 0} | one)) for one in asked.values()]
        tickets = [engine.submit(prompt, one) for prompt, one in zip(asked, wishes, strict=True)]
        for ticket, expected in zip(tickets, alone.values(), strict=True):
            pieces = list(ticket)
            done = ticket.result()
            assert (done.token_ids, done.text) == (expected.token_ids, expected.text)
            assert done.logprobs == expected.logprobs
            assert done.prompt_logprobs == expected.prompt_logprobs
            assert tuple(one for piece in pieces for one in piece.logprobs) == done.logprobs
            assert tuple(one for piece in pieces for one in piece.prompt_logprobs) == done.prompt_logprobs
