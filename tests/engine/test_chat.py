import json
from pathlib import Path

import pytest

from coterie.engine.chat import chat_inputs
from coterie.engine.processors import Processors
from coterie.errors import InputError, LoadError

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% elif p.type == 'text' %}{{ p.text }}"
    "{% endif %}{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
TALK = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": [{"type": "text", "text": "Who are "}, {"type": "text", "text": "you"}]},
]


def text_of(processors: Processors, inputs: object) -> str:
    return processors.tokenizer.decode(inputs["input_ids"][0])


def with_template(directory: Path, *, in_processor: bool) -> Processors:
    if in_processor:
        (directory / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    else:
        (directory / "chat_template.jinja").write_text(TEMPLATE)
    return Processors(directory)


def test_without_a_template_the_contents_are_continued(processors):
    assert text_of(processors, chat_inputs(processors, TALK)) == "Hello\nHi\nWho are you"


def test_without_a_template_media_stand_where_they_were_said(processors, data):
    message = {
        "role": "user",
        "content": [{"type": "text", "text": "this: "}, {"type": "image", "path": data / "sandal.png"}],
    }
    inputs = chat_inputs(processors, [message])
    assert text_of(processors, inputs) == "this: <|vision_start|>" + 16 * "<|image_pad|>" + "<|vision_end|>"
    assert inputs["image_grid_thw"].shape == (1, 3)


@pytest.mark.parametrize("in_processor", [True, False])
def test_the_template_is_applied_and_the_answer_opened(directory, in_processor):
    processors = with_template(directory, in_processor=in_processor)
    assert text_of(processors, chat_inputs(processors, TALK)) == "[user]Hello[assistant]Hi[user]Who are you[assistant]"


def test_the_template_places_media(directory, data):
    processors = with_template(directory, in_processor=False)
    content = [{"type": "image", "path": str(data / "sandal.png")}, {"type": "text", "text": "what"}]
    text = text_of(processors, chat_inputs(processors, [{"role": "user", "content": content}]))
    assert text == "[user]<|vision_start|>" + 16 * "<|image_pad|>" + "<|vision_end|>what[assistant]"


def test_a_template_that_refuses(directory):
    (directory / "chat_template.jinja").write_text("{{ raise_exception('user must begin') }}")
    with pytest.raises(InputError, match="refuses this conversation: user must begin"):
        chat_inputs(directory, TALK)


def test_a_broken_processor_template(directory):
    (directory / "chat_template.json").write_text("[]")
    with pytest.raises(LoadError, match=r"chat_template\.json"):
        chat_inputs(directory, TALK)


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], "conversation is empty"),
        ([{"content": "x"}], "needs a 'role'"),
        ([{"role": "user"}], "needs a 'role' and a 'content'"),
        ([{"role": "user", "content": [{"type": "video", "path": "x"}]}], "not a part of a message"),
        ([{"role": "user", "content": ["text"]}], "not a part of a message"),
    ],
)
def test_malformed_conversations(processors, messages, error):
    with pytest.raises(InputError, match=error):
        chat_inputs(processors, messages)
