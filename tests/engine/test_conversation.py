from types import SimpleNamespace

import pytest

from coterie.engine import conversation as module
from coterie.engine.completion import Completion
from coterie.engine.conversation import Conversation
from coterie.engine.sampling import Sampling
from coterie.errors import ContextLengthError, InputError


def answer(text: str, *token_ids: int) -> Completion:
    return Completion(
        prompt_tokens=1, token_ids=token_ids, text=text, finish_reason="stop", prefill_s=1.0, decode_s=1.0
    )


@pytest.fixture
def asked(monkeypatch, processors):
    """What the model was given, decoded; its answers are "one", "two", ..."""
    seen = SimpleNamespace(prompts=[], seeds=[], answers=[answer("one", 1), answer("two", 2), answer("three", 3)])

    def complete(model, tokenizer, inputs, sampling, **options):
        seen.prompts.append(tokenizer.decode(inputs["input_ids"][0]))
        seen.seeds.append(sampling.seed)
        given = seen.answers.pop(0)
        if isinstance(given, Exception):
            raise given
        return given

    monkeypatch.setattr(module, "complete", complete)
    return seen


def test_every_turn_sees_the_whole_conversation(asked, processors) -> None:
    talk = Conversation(None, processors)
    assert not talk.templated
    talk.ask("first")
    talk.ask("second")
    assert asked.prompts == ["first", "first\none\nsecond"]
    assert [message["role"] for message in talk.messages] == ["user", "assistant"] * 2


def test_reset_forgets_all_but_the_system_message(asked, processors) -> None:
    talk = Conversation(None, processors, system="Be brief.")
    talk.ask("first")
    talk.reset()
    talk.ask("second")
    assert asked.prompts == ["Be brief.\nfirst", "Be brief.\nsecond"]


def test_a_template_is_used_where_there_is_one(asked, processors, monkeypatch) -> None:
    monkeypatch.setattr(
        processors.tokenizer,
        "chat_template",
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]",
    )
    talk = Conversation(None, processors)
    assert talk.templated
    talk.ask("hi")
    assert asked.prompts == ["[user]hi[assistant]"]


@pytest.mark.parametrize("failed", [ContextLengthError("Too long."), answer("")])
def test_a_turn_that_came_to_nothing_leaves_no_trace(asked, processors, failed) -> None:
    asked.answers.insert(1, failed)
    talk = Conversation(None, processors)
    talk.ask("first")
    if isinstance(failed, Exception):
        with pytest.raises(ContextLengthError):
            talk.ask("lost")
    else:
        talk.ask("lost")
    talk.ask("second")
    assert asked.prompts[-1] == "first\none\nsecond"


def test_each_turn_has_its_own_seed(asked, processors) -> None:
    talk = Conversation(None, processors, sampling=Sampling(seed=4))
    talk.ask("a")
    talk.ask("b")
    assert asked.seeds == [4, 5]


def test_media_become_part_of_the_conversation(asked, processors, data) -> None:
    talk = Conversation(None, processors)
    talk.ask("", images=[data / "sandal.png"])
    talk.ask("and this?")
    assert all("<|image_pad|>" in prompt for prompt in asked.prompts)


def test_an_empty_turn_is_refused(asked, processors) -> None:
    with pytest.raises(InputError):
        Conversation(None, processors).ask("")
