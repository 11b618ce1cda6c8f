import dataclasses
from types import SimpleNamespace

import pytest
from transformers import GenerationConfig, PreTrainedConfig

from coterie.errors import ContextLengthError, InputError, UsageError
from coterie.generation import conversation as module
from coterie.generation.answers import ToolCall
from coterie.generation.completion import Completion
from coterie.generation.conversation import Conversation
from coterie.generation.sampling import Sampling


def answer(text: str, *token_ids: int) -> Completion:
    return Completion(
        prompt_tokens=1, token_ids=token_ids, text=text, finish_reason="stop", prefill_s=1.0, decode_s=1.0
    )


def limited(context: int | None, **settings: object) -> SimpleNamespace:
    """As much of a model as is looked at before it is asked."""
    return SimpleNamespace(
        coterie=SimpleNamespace(max_context=context),
        config=PreTrainedConfig(),
        generation_config=GenerationConfig(**settings),
    )


MODEL = limited(None)


@pytest.fixture
def asked(monkeypatch, processors):
    """What the model was given, decoded; its answers are "one", "two", ..."""
    seen = SimpleNamespace(prompts=[], seeds=[], answers=[answer("one", 1), answer("two", 2), answer("three", 3)])

    class Completing:
        def __init__(self, model, tokenizer, inputs, sampling, **options):
            seen.prompts.append(tokenizer.decode(inputs["input_ids"][0]))
            seen.seeds.append(sampling.seed)

        def run(self, should_stop, **options):
            given = seen.answers.pop(0)
            if isinstance(given, Exception):
                raise given
            return given

        def take_inputs(self, inputs):
            pass

    monkeypatch.setattr(module, "Completing", Completing)
    return seen


def test_every_turn_sees_the_whole_conversation(asked, processors) -> None:
    talk = Conversation(MODEL, processors)
    assert not talk.templated
    talk.ask("first")
    talk.ask("second")
    assert asked.prompts == ["first", "first\none\nsecond"]
    assert [message["role"] for message in talk.messages] == ["user", "assistant"] * 2


def test_reset_forgets_all_but_the_system_message(asked, processors) -> None:
    talk = Conversation(MODEL, processors, system="Be brief.")
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
    talk = Conversation(MODEL, processors)
    assert talk.templated
    talk.ask("hi")
    assert asked.prompts == ["[user]hi[assistant]"]


@pytest.mark.parametrize("failed", [ContextLengthError("Too long."), answer("")])
def test_a_turn_that_came_to_nothing_leaves_no_trace(asked, processors, failed) -> None:
    asked.answers.insert(1, failed)
    talk = Conversation(MODEL, processors)
    talk.ask("first")
    if isinstance(failed, Exception):
        with pytest.raises(ContextLengthError):
            talk.ask("lost")
    else:
        talk.ask("lost")
    talk.ask("second")
    assert asked.prompts[-1] == "first\none\nsecond"


def test_each_turn_has_its_own_seed(asked, processors) -> None:
    talk = Conversation(MODEL, processors, sampling=Sampling(seed=4))
    talk.ask("a")
    talk.ask("b")
    assert asked.seeds == [4, 5]


def test_media_become_part_of_the_conversation(asked, processors, data) -> None:
    talk = Conversation(MODEL, processors)
    talk.ask("", images=[data / "sandal.png"])
    talk.ask("and this?")
    assert all("<|image_pad|>" in prompt for prompt in asked.prompts)


def test_an_empty_turn_is_refused(asked, processors) -> None:
    with pytest.raises(InputError):
        Conversation(MODEL, processors).ask("")


CHAT = (
    "{% for m in messages %}[{{ m.role }}{{ ' ' ~ m.reasoning_content if m.reasoning_content }}]{{ m.content }}"
    "{% endfor %}"
)


def test_what_the_model_thought_is_kept_apart(asked, processors, monkeypatch) -> None:
    monkeypatch.setattr(processors.tokenizer, "chat_template", CHAT)
    asked.answers.insert(0, dataclasses.replace(answer("Hi", 1), reasoning="They greet."))
    talk = Conversation(MODEL, processors)
    talk.ask("hello")
    talk.ask("again")
    assert asked.prompts[-1] == "[user]hello[assistant They greet.]Hi[user]again"
    assert talk.messages[1]["thinking"] == "They greet."


def test_calls_are_kept_as_templates_know_them(asked, processors) -> None:
    asked.answers.insert(0, dataclasses.replace(answer("", 1), tool_calls=(ToolCall(name="f", arguments='{"a": 1}'),)))
    talk = Conversation(MODEL, processors)
    talk.ask("hello")
    assert talk.messages[1]["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]


@pytest.mark.parametrize(
    "model",
    [
        limited(18),
        limited(36, num_beams=2),
        limited(36, guidance_scale=1.5),
        limited(72, num_beams=2, guidance_scale=2),
    ],
    ids=["one sequence", "beams", "guided", "guided beams"],
)
def test_the_oldest_turns_are_forgotten_when_the_context_is_full(asked, processors, model) -> None:
    talk = Conversation(model, processors, sampling=Sampling(max_new_tokens=4), system="Be brief.")
    talk.ask("first message")
    assert talk.forgotten == 0
    talk.ask("and a second message that is long enough")
    assert talk.forgotten == 2
    assert asked.prompts[-1] == "Be brief.\nand a second message that is long enough"
    assert [message["role"] for message in talk.messages] == ["system", "user", "assistant"]
    with_all_of_it = "a message that is much too long, " * 9
    talk.ask(with_all_of_it)  # alone, it is the model's to refuse
    assert asked.prompts[-1] == f"Be brief.\n{with_all_of_it}"


def test_a_beam_search_talks_on_when_its_memory_is_full(bundled, processors, open_model) -> None:
    model = open_model(bundled, expert_memory="100%", max_context=64)
    model.generation_config.num_beams = 2
    talk = Conversation(model, processors, sampling=Sampling(max_new_tokens=8))
    forgotten = 0
    for _ in range(5):
        assert talk.ask("And it came to pass, that he went up").token_ids
        forgotten = max(forgotten, talk.forgotten)
    assert forgotten


def test_a_turn_that_failed_forgets_nothing(asked, processors) -> None:
    talk = Conversation(limited(24), processors, sampling=Sampling(max_new_tokens=4))
    talk.ask("first message")
    asked.answers.insert(0, InputError("No."))
    with pytest.raises(InputError):
        talk.ask("and a second message that is long enough, and longer")
    assert [message["role"] for message in talk.messages] == ["user", "assistant"]


def test_undo_retry_and_another_system_message(asked, processors) -> None:
    talk = Conversation(MODEL, processors)
    assert not talk.undo()
    with pytest.raises(UsageError):
        talk.retry()
    talk.ask("first")
    assert talk.retry().text == "two"
    assert [message["content"] for message in talk.messages[1:]] == ["two"]
    talk.instruct("Be brief.")
    asked.answers.insert(0, InputError("No."))
    with pytest.raises(InputError):
        talk.retry()
    assert [message["role"] for message in talk.messages] == ["system", "user", "assistant"]
    assert talk.undo()
    talk.instruct(None)
    assert talk.messages == []


def test_a_conversation_is_kept_and_loaded(asked, processors, tmp_path, data) -> None:
    talk = Conversation(MODEL, processors, system="Be brief.")
    talk.ask("Größe", images=[data / "sandal.png"])
    talk.save(tmp_path / "talk.json")
    other = Conversation(MODEL, processors)
    other.restore(tmp_path / "talk.json")
    assert other.messages == talk.messages
    other.reset()
    assert [message["role"] for message in other.messages] == ["system"]
    for text in ("{}", "[]", '{"messages": [5]}', '{"messages": [{"role": "tool", "content": "x"}]}', "{"):
        (tmp_path / "talk.json").write_text(text)
        with pytest.raises(InputError, match=r"talk\.json"):
            other.restore(tmp_path / "talk.json")
