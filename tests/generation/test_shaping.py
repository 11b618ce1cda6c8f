"""What a request adds to scores, and what ends it."""

import pytest
import torch

from coterie.engine.loader import load
from coterie.errors import InputError
from coterie.generation.completion import Completion, complete
from coterie.generation.grammar import Grammar
from coterie.generation.inputs import build_inputs
from coterie.generation.sampling import Sampling
from coterie.generation.shaping import Bias, Penalties

END = 0


@pytest.fixture(scope="module")
def model(bundled):
    opened = load(bundled, expert_memory="50%")
    yield opened
    opened.coterie.close()


def ask(model, processors, **sampling) -> Completion:
    wishes = Sampling(**({"max_new_tokens": 6, "temperature": 0} | sampling))
    return complete(model, processors.tokenizer, build_inputs(processors, "And it came to pass"), wishes)


def test_penalties_count_what_was_generated() -> None:
    ids, scores = torch.tensor([[1, 1, 2, 3, 3]]), torch.zeros(1, 5)
    assert Penalties(0.5, 0.25, prompt=2)(ids, scores).tolist() == [[0, 0, -0.75, -1.0, 0]]
    assert Penalties(0.5, 0.25, prompt=5)(ids, scores).tolist() == [[0] * 5]
    assert Penalties(-1, 0, prompt=0)(ids, scores).tolist() == [[0, 1, 1, 1, 0]]


def test_a_bias_is_added() -> None:
    scores = torch.ones(1, 4)
    assert Bias({2: -100, 0: 1.5})(torch.tensor([[1]]), scores).tolist() == [[2.5, 1, -99, 1]]
    assert scores.tolist() == [[1] * 4]


def test_each_has_its_effect(model, processors) -> None:
    plain = ask(model, processors, max_new_tokens=20)
    assert ask(model, processors, logit_bias={plain.token_ids[0]: -100}).token_ids[0] != plain.token_ids[0]
    assert ask(model, processors, logit_bias={77: 100}).token_ids == (77,) * 6
    again = ask(model, processors, max_new_tokens=20, frequency_penalty=2, presence_penalty=2)
    assert len(set(again.token_ids)) > len(set(plain.token_ids))
    assert ask(model, processors, typical_p=0.2, temperature=1.5, seed=3).token_ids != plain.token_ids[:6]


def test_ends(model, processors) -> None:
    third = ask(model, processors).token_ids[2]
    done = ask(model, processors, stop_token_ids=(third,))
    assert (done.finish_reason, len(done.token_ids), done.text) == ("stop", 3, ", that he")
    wants = {"logit_bias": {END: 100}}
    assert ask(model, processors, **wants).token_ids == (END,)
    assert ask(model, processors, **wants, ignore_eos=True).token_ids == (END,) * 6
    held = ask(model, processors, **wants, min_new_tokens=3)
    assert (held.finish_reason, len(held.token_ids)) == ("stop", 4)
    held = ask(model, processors, stop_token_ids=(third,), min_new_tokens=4)
    assert third not in held.token_ids[:4]


def test_an_answer_has_its_form(model, processors) -> None:
    done = ask(model, processors, grammar=Grammar.regex("(yes|no) [0-9]{3}"), max_new_tokens=20, temperature=1, seed=1)
    assert done.finish_reason == "stop"
    assert done.text[:-3] in ("yes ", "no ")
    cut = ask(model, processors, grammar=Grammar.regex("(yes|no) [0-9]{3}"), max_new_tokens=3)
    assert cut.finish_reason == "length"


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"logit_bias": {8192: 1}}, "logit_bias"),
        ({"stop_token_ids": (8192,)}, "stop_token_ids"),
        ({"grammar": Grammar.regex("[")}, "grammar"),
    ],
)
def test_what_a_model_does_not_have_is_named(model, processors, wrong, field) -> None:
    with pytest.raises(InputError) as caught:
        ask(model, processors, **wrong)
    assert caught.value.facts["field"] == field
