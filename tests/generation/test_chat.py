import json
from pathlib import Path

import pytest

from coterie.errors import InputError, LoadError, UsageError
from coterie.generation.chat import chat_inputs, chat_prompt
from coterie.generation.chat_options import ChatOptions
from coterie.generation.processors import Processors

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
        ([{"role": "user", "content": [{"type": "film", "path": "x"}]}], "not a part of a message"),
        ([{"role": "user", "content": ["text"]}], "not a part of a message"),
    ],
)
def test_malformed_conversations(processors, messages, error):
    with pytest.raises(InputError, match=error):
        chat_inputs(processors, messages)


PARTS_ONLY = (
    "{% for m in messages %}{{ m.role }}: {% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}"
    "{% elif c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}\n{% endfor %}"
)
TEXT_ONLY = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
ANSWER = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "what is it"}]


def prompt_of(directory: Path, template: object, messages: object = ANSWER, **variables: object) -> str:
    (directory / "tokenizer_config.json").write_text(
        json.dumps(json.loads((directory / "tokenizer_config.json").read_text()) | {"chat_template": template})
    )
    return chat_prompt(Processors(directory), messages, ChatOptions(variables=variables)).text


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize(
    "template",
    [
        PARTS_ONLY,
        TEXT_ONLY,
        "{% for m in messages %}{{ m.role }}: {{ m.content[0].text }}\n{% endfor %}",
        "{% for m in messages %}{{ m.role }}: {{ m.content | trim | replace('\n', ' ') }}\n{% endfor %}",
        [{"name": "default", "template": PARTS_ONLY}, {"name": "tool_use", "template": "no"}],
        "{% for m in messages %}{% if m.content is string %}{{ raise_exception('parts') }}{% endif %}"
        "{{ m.role }}: {{ m.content | map(attribute='text') | join }}\n{% endfor %}",
    ],
)
def test_the_form_is_the_one_that_the_template_was_written_for(directory, template, parts) -> None:
    talk = (
        [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in ANSWER] if parts else ANSWER
    )
    assert "".join(prompt_of(directory, template, talk).split()) == "system:bebriefuser:whatisit"


@pytest.mark.parametrize("template", [PARTS_ONLY, TEXT_ONLY])
def test_media_are_shown_by_templates_of_either_kind(directory, data, template) -> None:
    content = [{"type": "image", "path": data / "sandal.png"}, {"type": "text", "text": "what"}]
    text = prompt_of(directory, template, [{"role": "user", "content": content}])
    assert text.strip() == "user: <|vision_start|><|image_pad|><|vision_end|>what"


@pytest.mark.parametrize("change", ["upper", "tojson", "e", "replace('i', 'y')"])
def test_a_template_may_change_a_text(directory, change) -> None:
    talk = [{"role": "user", "content": 'what "is" <it>'}]
    assert "wh" in prompt_of(directory, "{{ messages[0].content | " + change + " }}", talk).lower()


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "what the system says"),
        ("{{ messages[0].content }}", "what the user says"),
        ("hello", "what the system says"),
    ],
)
def test_a_template_that_leaves_a_text_out_is_an_error(directory, template, what) -> None:
    with pytest.raises(InputError, match=f"leaves out {what}"):
        prompt_of(directory, template)


def test_what_the_model_said_may_be_left_out(directory) -> None:
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert prompt_of(directory, "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", talk) == "ac"


def test_the_template_is_told_what_was_asked_for(directory) -> None:
    template = TEXT_ONLY + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    assert prompt_of(directory, template, enable_thinking=False).endswith("<think></think>")
    for options in (ChatOptions(thinking=False), ChatOptions(variables={"enable_thinking": False})):
        assert options.told({"enable_thinking", "thinking"}) == {"enable_thinking": False}
    assert ChatOptions(thinking=True).told({"thinking", "x"}) == {"thinking": True}
    with pytest.raises(UsageError, match=r"no setting 'thinkng'\. It reads enable_thinking\."):
        prompt_of(directory, template, thinkng=False)
    with pytest.raises(UsageError, match="no switch for thinking"):
        ChatOptions(thinking=True).told({"x"})
    with pytest.raises(UsageError, match="messages"):
        ChatOptions(variables={"messages": []})
    with pytest.raises(UsageError, match="x"):
        ChatOptions(variables={"x": {1}})


def test_another_template_by_name_and_by_file(directory, tmp_path) -> None:
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            json.loads((directory / "tokenizer_config.json").read_text())
            | {
                "chat_template": [
                    {"name": "default", "template": TEXT_ONLY},
                    {"name": "rag", "template": "R" + TEXT_ONLY},
                ]
            }
        )
    )
    processors = Processors(directory)
    (tmp_path / "mine.jinja").write_text("M" + TEXT_ONLY)
    for name, first in (("rag", "R"), (str(tmp_path / "mine.jinja"), "M"), (None, "s")):
        assert chat_prompt(processors, ANSWER, ChatOptions(template=name)).text[0] == first
    with pytest.raises(LoadError, match="'default', 'rag'"):
        chat_prompt(processors, ANSWER, ChatOptions(template="rga"))


def test_text_that_is_not_utf8(directory, processors) -> None:
    with pytest.raises(InputError, match="not UTF-8"):
        chat_inputs(processors, [{"role": "user", "content": "\udcff"}])
