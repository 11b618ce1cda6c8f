"""Answers that have to be calls, or to have a form after their reasoning, in each family's words."""

import json
from dataclasses import dataclass, field

import pytest
import torch
from tokenizers import AddedToken

from coterie.errors import UnsupportedError, UsageError
from coterie.generation.answer_form import answer_form, last_call_ends
from coterie.generation.answers import reader_for
from coterie.generation.call_formats import call_format
from coterie.generation.grammar import Grammar
from coterie.generation.grammar_matcher import Compiler
from coterie.generation.processors import Processors
from coterie.generation.tool_calls import CallText
from coterie.generation.toolbox import Toolbox

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"$ref": "#/$defs/few"},
                "unit": {"type": "string", "enum": ["C", "F"]},
            },
            "required": ["city"],
            "additionalProperties": False,
            "$defs": {"few": {"type": "integer", "minimum": 1, "maximum": 9}},
        },
    },
}
TIME = {"type": "function", "function": {"name": "time"}}
GIVEN = {"city": "Köln <1>", "days": 2}
JSON = json.dumps(GIVEN, ensure_ascii=False)


@dataclass
class Family:
    """How one writes."""

    name: str
    template: str
    call: str
    other: str
    """A call of the tool without parameters."""
    special: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    bad: list[str] = field(default_factory=list)
    thinks: tuple[str, str] = ("", "")
    """A mark before and after reasoning."""
    says: str = "{}"


HERMES = Family(
    "hermes", "<tool_call> <think> </think>",
    f'<tool_call>\n{{"name": "weather", "arguments": {JSON}}}\n</tool_call>',
    '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>',
    plain=("<tool_call>", "</tool_call>", "<think>", "</think>"),
    bad=['<tool_call>\n{"name": "weather", "arguments": {"days": 1}}\n</tool_call>',
         '<tool_call>\n{"name": "weather", "arguments": {"city": "x", "days": 10}}\n</tool_call>',
         '<tool_call>\n{"name": "wether", "arguments": {"city": "x"}}\n</tool_call>'],
    thinks=("<think>", "</think>"),
)  # fmt: skip
CODER = Family(
    "coder", "<function=f><parameter=p></tool_call>",
    "<tool_call>\n<function=weather>\n<parameter=city>\nKöln <1>\n</parameter>\n<parameter=days>\n2\n</parameter>\n"
    "</function>\n</tool_call>",
    "<tool_call>\n<function=time>\n</function>\n</tool_call>", plain=("<tool_call>", "</tool_call>"),
    bad=["<tool_call>\n<function=weather>\n</function>\n</tool_call>"],
)  # fmt: skip
GLM = Family(
    "glm", "<tool_call><arg_key> <think> </think>",
    "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Köln <1></arg_value>\n<arg_key>days</arg_key>\n"
    "<arg_value>2</arg_value>\n</tool_call>",
    "<tool_call>time\n</tool_call>", plain=("<tool_call>", "</tool_call>", "<think>", "</think>"),
    bad=["<tool_call>weather\n</tool_call>"], thinks=("<think>", "</think>"),
)  # fmt: skip
DEEPSEEK_MARKS = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>",
                  "<｜tool▁calls▁end｜>")  # fmt: skip
DEEPSEEK = Family(
    "deepseek", "<｜tool▁call▁begin｜> <think> </think>",
    f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{JSON}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    special=DEEPSEEK_MARKS, plain=("<think>", "</think>"), thinks=("<think>", "</think>"),
)  # fmt: skip
FENCED = Family(
    "deepseek-fenced", "<｜tool▁call▁begin｜> ```json",
    f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{JSON}\n```<｜tool▁call▁end｜>"
    "<｜tool▁calls▁end｜>",
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    special=DEEPSEEK_MARKS,
)  # fmt: skip
OSS_MARKS = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>")
OSS = Family(
    "gpt-oss", "<|channel|>",
    f"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{JSON}",
    "<|channel|>commentary to=functions.time <|constrain|>json<|message|>{}", special=OSS_MARKS,
    thinks=("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"), says="<|channel|>final<|message|>{}",
)  # fmt: skip
FAMILIES = [HERMES, CODER, GLM, DEEPSEEK, FENCED, OSS]


class Speaker:
    """A tokenizer with a family's marks."""

    def __init__(self, bundled, family: Family) -> None:
        self.family = family
        self.tokenizer = Processors(bundled).tokenizer
        self.tokenizer.add_tokens([AddedToken(one, special=True) for one in family.special], special_tokens=True)
        self.tokenizer.add_tokens([AddedToken(one, special=False) for one in family.plain])
        self.compiler = Compiler(self.tokenizer, {0}, len(self.tokenizer))

    def reader(self, prompt: str = ""):
        return reader_for(self.tokenizer, self.family.template, prompt)

    def form(self, toolbox: Toolbox, wanted: Grammar | None = None, prompt: str = "") -> Grammar | None:
        return answer_form(self.tokenizer, self.family.template, self.reader(prompt), toolbox, wanted)

    def allows(self, grammar: Grammar, text: str) -> bool:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        matcher = self.compiler.matcher(grammar, prompt=1)
        for place, token in enumerate([*ids, 0]):
            scores = matcher(torch.tensor([[5, *ids[:place]]]), torch.zeros(1, len(self.tokenizer)))
            if scores[0, token] == -torch.inf:
                return False
        return True

    def read(self, text: str) -> tuple[str, list[tuple[str, object]]]:
        reader, calls = self.reader(), CallText([WEATHER, TIME])
        reader.on_text = calls.feed
        for letter in text:
            reader.feed(letter)
        reader.end()
        calls.end()
        return calls.text, [(one.name, json.loads(one.arguments)) for one in (*reader.calls, *calls.calls)]


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def speaker(request, bundled) -> Speaker:
    return Speaker(bundled, request.param)


def test_a_call_is_kept_to_its_tool_and_read_again(speaker: Speaker) -> None:
    family = speaker.family
    form = speaker.form(Toolbox(tools=(WEATHER, TIME), must=True))
    assert form is not None
    for good in (family.call, family.other):
        assert speaker.allows(form, good), good
    for bad in ("Hello", "{}", family.call[:-1], *family.bad):
        assert not speaker.allows(form, bad), bad
    assert speaker.read(family.call) == ("", [("weather", GIVEN)])
    assert speaker.read(family.other) == ("", [("time", {})])
    begin, end = family.thinks
    if begin:
        assert speaker.allows(form, f"{begin}Hm, <b>\nso{end}{family.call}")
        assert not speaker.allows(form, f"{begin}Hm{end}Hello")


def test_one_tool_alone_and_one_call_alone(speaker: Speaker) -> None:
    family = speaker.family
    form = speaker.form(Toolbox(tools=(WEATHER, TIME), must=True, only="time"))
    assert form is not None
    assert speaker.allows(form, family.other)
    assert not speaker.allows(form, family.call)
    if family.name in ("hermes", "coder", "glm"):
        twice = f"{family.call}\n{family.other}"
        several, single = (
            speaker.form(Toolbox(tools=(WEATHER, TIME), must=True, several=several)) for several in (True, False)
        )
        assert several is not None
        assert single is not None
        assert speaker.allows(several, twice)
        assert not speaker.allows(single, twice)
        assert len(speaker.read(twice)[1]) == 2


def test_a_form_comes_after_the_reasoning_or_calls_do(speaker: Speaker) -> None:
    family = speaker.family
    begin, end = family.thinks
    alone = speaker.form(Toolbox(), Grammar.json_object())
    both = speaker.form(Toolbox(tools=(WEATHER, TIME)), Grammar.json_object())
    assert alone is not None
    assert both is not None
    for form, calls in ((alone, False), (both, True)):
        assert speaker.allows(form, family.says)
        assert speaker.allows(form, family.call) == calls
        assert not begin or speaker.allows(form, f"{begin}Hm{end}{family.says}")
        assert not speaker.allows(form, f"{begin}Hm{end}so")


def test_a_call_that_was_the_last_ends_the_answer(speaker: Speaker) -> None:
    template = speaker.family.template
    made = call_format(template, speaker.tokenizer.get_added_vocab())
    assert made is not None
    assert made.name == speaker.family.name
    ends = last_call_ends(template, speaker.tokenizer, Toolbox(tools=(WEATHER,), several=False))
    assert ends == ((made.closing,) if made.closing else ())
    assert last_call_ends(template, speaker.tokenizer, Toolbox(tools=(WEATHER,))) == ()
    if ends:  # without the mark after it, the call is still one
        cut = speaker.family.call.partition(ends[0])[0]
        assert speaker.read(cut) == ("", [("weather", GIVEN)])


def test_reasoning_that_the_prompt_has_begun(bundled) -> None:
    speaker = Speaker(bundled, HERMES)
    form = speaker.form(Toolbox(tools=(TIME,), must=True), prompt="<think>\n")
    assert form is not None
    assert speaker.allows(form, f"Hm</think>\n\n{HERMES.other}")
    assert not speaker.allows(form, HERMES.other)


def test_what_is_not_known_or_excludes_itself_is_named(bundled) -> None:
    speaker = Speaker(bundled, Family("none", "{{ tools }}", "", ""))
    with pytest.raises(UnsupportedError) as unknown:
        speaker.form(Toolbox(tools=(TIME,), must=True))
    assert unknown.value.facts["field"] == "tool_choice"
    with pytest.raises(UsageError) as both:
        speaker.form(Toolbox(tools=(TIME,), must=True), Grammar.json_object())
    assert both.value.facts["field"] == "grammar"
    assert speaker.form(Toolbox(tools=(TIME,))) is None
