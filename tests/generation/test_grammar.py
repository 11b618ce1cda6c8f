"""Forms of answers, and what keeps answers to them."""

import json

import pytest
import torch

from coterie.errors import InputError, UsageError
from coterie.generation import grammar_matcher
from coterie.generation.grammar import MOST_NBYTES, Grammar
from coterie.generation.grammar_matcher import Compiler

DEEP: dict = {"type": "object"}
for _ in range(400):
    DEEP = {"type": "object", "properties": {"a": DEEP}}


@pytest.fixture(scope="module")
def compiler(processors) -> Compiler:
    return Compiler(processors.tokenizer, {0}, 8192)


def allows(compiler: Compiler, processors, grammar: Grammar, text: str) -> bool:
    """Whether a text is one of the form, token by token."""
    ids = processors.tokenizer(text, add_special_tokens=False)["input_ids"]
    matcher = compiler.matcher(grammar, prompt=1)
    for place, token in enumerate([*ids, 0]):
        scores = matcher(torch.tensor([[5, *ids[:place]]]), torch.zeros(1, 8192))
        if scores[0, token] == -torch.inf:
            return False
    return True


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        (Grammar.json_object(), ['{"a": [1, {"b": null}]}', "{}"], ["[1]", "a", '{"a": 1', " " * 30 + "{}"]),
        (
            Grammar.json_schema({"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}},
                                 "required": ["n"], "additionalProperties": False}),
            ['{"n": 9}', '{\n  "n": -5\n}'], ['{"n": 10}', "{}", '{"n": 1, "m": 2}'],
        ),
        (Grammar.regex("(yes|no)/[0-9]{2}"), ["yes/12"], ["yes/1", "yes/123", "maybe/12"]),
        (Grammar.of_text('start: "a"+ b\nb: /[xy]/'), ["aax"], ["ax1", "x"]),
        (Grammar.of_text('root ::= "yes" | "no"'), ["yes", "no"], ["yesno", "maybe"]),
        (Grammar.choice(['say "hi"', "a\\b"]), ['say "hi"', "a\\b"], ["say", "hi"]),
        (Grammar("regex", "[0-9]+", 'start: "<think>" thought @answer\nthought[suffix="</think>"]: /(.|\\n)*/'),
         ["<think>a 1\nb</think>12"], ["12", "<think>12", "<think></think>a"]),
    ],
)  # fmt: skip
def test_a_form_allows_what_has_it_and_nothing_else(compiler, processors, grammar, good, bad) -> None:
    assert [text for text in good if not allows(compiler, processors, grammar, text)] == []
    assert [text for text in bad if allows(compiler, processors, grammar, text)] == []


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar.json_schema(DEEP),
        Grammar.json_schema({"$ref": "#"}),
        Grammar.json_schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
        Grammar.json_schema({"$ref": "http://169.254.169.254/x"}),
        Grammar.json_schema({"$ref": "file:///etc/passwd"}),
        Grammar.json_schema({"type": "nonsense"}),
        Grammar.json_schema({"not": {"type": "string"}}),
        Grammar.json_schema({"type": "integer", "minimum": 5, "maximum": 3}),
        Grammar.regex("["),
        Grammar.regex("(?=a)"),
        Grammar.regex("(" * 2000 + "a" + ")" * 2000),
        Grammar.of_text("start: nowhere"),
        Grammar.of_text('start: start "a"'),
        Grammar.of_text("root ::= nowhere"),
        Grammar.of_text("::="),
        Grammar.of_text(""),
        Grammar.json_schema({"type": "integer", "multipleOf": 123_457_891}),
        Grammar.of_text("start: " + "(" * 20000 + '"a"' + ")" * 20000),
        Grammar.regex("\ud800"),
    ],
    ids=lambda grammar: f"{grammar.kind}-{grammar.text[:20]!r}",
)
def test_what_is_no_form_is_refused_by_name(compiler, grammar) -> None:
    for _ in range(2):  # the second time it is known
        with pytest.raises(InputError) as caught:
            compiler.compile(grammar)
        assert caught.value.facts["field"] == "grammar"
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar.json_schema({"type": "string", "pattern": "^(a+)+b$"}),
        Grammar.json_schema({"enum": [f"x{number}" for number in range(15_000)]}),
        Grammar.regex("(.{1,5000}x.{1,5000}){500}"),
    ],
    ids=["backtracking", "enum", "repetition"],
)
def test_what_is_costly_elsewhere_is_harmless(compiler, grammar) -> None:
    scores = compiler.matcher(grammar, prompt=1)(torch.tensor([[5]]), torch.zeros(1, 8192))
    assert torch.isfinite(scores).any()


def test_a_description_has_a_limit() -> None:
    with pytest.raises(UsageError):
        Grammar.regex("a" * (MOST_NBYTES + 1))
    with pytest.raises(UsageError):
        Grammar.json_schema({"a": {1, 2}})


def test_what_was_compiled_is_found_again_and_not_all_is_kept(processors, monkeypatch) -> None:
    monkeypatch.setattr(grammar_matcher, "_KEPT", 3)
    compiler = Compiler(processors.tokenizer, {0}, 8192)
    first = compiler.compile(Grammar.regex("a"))
    assert compiler.compile(Grammar.regex("a")) is first
    for number in range(3):
        compiler.compile(Grammar.regex(f"b{number}"))
    assert compiler.compile(Grammar.regex("a")) is not first
    assert len(compiler._made) == 3


def test_a_form_counts_more_than_what_the_model_rules_out(compiler) -> None:
    scores = compiler.matcher(Grammar.regex("yes"), prompt=1)(torch.tensor([[5]]), torch.full((1, 8192), -torch.inf))
    assert torch.isfinite(scores).any()


def test_logits_may_be_more_than_there_are_tokens(compiler) -> None:
    scores = compiler.matcher(Grammar.regex("yes"), prompt=1)(torch.tensor([[5]]), torch.zeros(1, 9000))
    assert scores[0, 8192:].isinf().all()
    assert json.loads(Grammar.regex("yes").compiled())["grammars"]
