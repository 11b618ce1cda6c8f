import os

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from coterie.errors import InputError, LoadError
from coterie.hf import templates
from coterie.hf.limited import kept_ready
from coterie.hf.templates import choose_template, processor_template, render, settings_of, template_of_file

TALK = [{"role": "user", "content": "Größe <b> \U0001f98a"}, {"role": "assistant", "content": "x\ny"}]
SAME = [
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n  {% endfor %}",
    "{%- for m in messages -%}{{ m | tojson }}{{ m | tojson(indent=2) }}{% endfor %}",
    "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m['content'] | trim | e }}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{{ bos_token }}{{ tools }}{{ add_generation_prompt }}{{ strftime_now('%Y') }}{{ dict(a=1) }}{{ missing }}",
    "{% macro f(m) %}<{{ m.role }}>{% endmacro %}{{ f(messages[0]) }}{{ messages | map(attribute='role') | list }}",
    "{{ messages[0].content is string }}{{ '%s-%03d' | format('a', 7) }}{{ 'a b'.split() }}{{ [3, 1] | sort }}",
]
HOSTILE = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a long text": "{{ 'a' * 10**10 }}",
    "a wide number": "{{ '%1000000000d' % 1 }}",
    "doubling": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "recursion": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "a long list": "{{ [1] * 10**10 }}",
    "a long output": "{% for i in range(99999) %}" + "a" * 1000 + "{% endfor %}",
    "deep brackets": "{{" + "(" * 20000 + "1" + ")" * 20000 + "}}",
    "no template": "{% for %}",
    "a division": "{{ 1 / 0 }}",
    "an escape": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
}


@pytest.mark.parametrize("template", SAME)
def test_the_text_is_that_of_transformers(template) -> None:
    told = {"add_generation_prompt": True, "bos_token": "<s>"}
    stock, _ = render_jinja_template([TALK], chat_template=template, **told)
    assert [one.text for one in render(template, [TALK, TALK], told)] == stock * 2


@pytest.mark.parametrize("template", SAME[:2])
def test_the_text_is_the_same_from_a_process_that_stands_ready(template) -> None:
    told = {"add_generation_prompt": True, "bos_token": "<s>"}
    expected = render(template, [TALK], told)
    with kept_ready():
        assert [render(template, [TALK], told) for _ in range(2)] == [expected] * 2


def test_null_is_no_key() -> None:
    talk = [{"role": "user", "content": "x", "tool_calls": None}]
    assert render("{{ messages[0].tool_calls is defined }}", [talk], {})[0].text == "False"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_template_ends_in_an_error(template) -> None:
    try:
        with kept_ready():
            results = render(template, [TALK], {})
    except InputError as error:
        assert "takes more than" in str(error)  # noqa: PT017 - either may be
    else:
        assert results[0].text is None
        assert results[0].problem


def test_one_form_may_fail_and_the_other_not() -> None:
    forms = [[{"role": "user", "content": 5}], [{"role": "user", "content": "a"}]]
    made = render("{{ messages[0].content + 'b' }}", forms, {})
    assert (made[0].text, made[1].text) == (None, "ab")


@pytest.mark.parametrize(
    ("template", "name", "expected"),
    [
        (None, None, None),
        ("a", None, "a"),
        ({"default": "a", "tool_use": "b"}, None, "a"),
        ({"default": "a", "tool_use": "b"}, "tool_use", "b"),
        ([{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}], "rag", "b"),
    ],
)
def test_the_template_of_a_name(template, name, expected, tmp_path) -> None:
    assert choose_template(template, name, path=tmp_path) == expected


@pytest.mark.parametrize(
    ("template", "name", "error"),
    [
        ({"tool_use": "b", "rag": "c"}, None, r"called 'default'.*'rag', 'tool_use'"),
        ({"default": "a"}, "rga", "called 'rga'"),
        ("a", "rag", "none called 'rag'"),
        (5, None, "neither a text nor several"),
        ([5], None, "neither a text nor several"),
        ({"default": 5}, None, "neither a text nor several"),
    ],
)
def test_what_is_no_template(template, name, error, tmp_path) -> None:
    with pytest.raises(LoadError, match=error):
        choose_template(template, name, path=tmp_path)


def test_a_template_in_a_file(tmp_path) -> None:
    (tmp_path / "a.jinja").write_bytes(b"\xef\xbb\xbf{{ messages }}")
    (tmp_path / "a.json").write_text('{"chat_template": "x"}')
    (tmp_path / "bad.jinja").write_bytes(b"\xff")
    (tmp_path / "empty.jinja").write_text("")
    os.mkfifo(tmp_path / "fifo")
    assert template_of_file(tmp_path / "a.jinja") == "{{ messages }}"
    assert template_of_file(tmp_path / "a.json") == "x"
    for name in ("bad.jinja", "empty.jinja", "fifo", "none"):
        with pytest.raises(InputError, match=name):
            template_of_file(tmp_path / name)


def test_a_template_with_the_processor(tmp_path) -> None:
    assert processor_template(tmp_path) is None
    (tmp_path / "chat_template.json").write_text('{"chat_template": "x"}')
    assert processor_template(tmp_path) == "x"
    (tmp_path / "chat_template.json").write_text("{}")
    with pytest.raises(LoadError, match="chat_template"):
        processor_template(tmp_path)


def test_a_clock_stops_what_takes_no_processor_time(monkeypatch) -> None:
    monkeypatch.setattr(templates, "_WALL_SECONDS", 0.0)
    with pytest.raises(InputError, match="takes more than"):
        render("x", [TALK], {})


@pytest.mark.parametrize(
    ("template", "names"),
    [
        (
            "{{ enable_thinking }}{% if x.y %}{{ 'quoted' }}{{ z | trim }}{# remark #}{% endif %} outside",
            "enable_thinking x z",
        ),
        ("{% for m in messages %}{{ m.role }}{{ loop.index }}{% endfor %}", ""),
        ("{% if a is not defined %}{% set a = true %}{% endif %}{{ a }}", "a"),
        ("{% set a = b %}{{ a }}", "b"),
        ("{{ strftime_now('%d') }}{{ raise_exception('no') }}{{ tools | tojson }}", ""),
        ("{{ broken", "broken"),
        ("{{ ' }}", ""),
        ("{{" + "(" * 100_000 + "a", "a"),
        ("", ""),
    ],
    ids=range(9),
)
def test_what_a_template_can_be_told_is_found(template: str, names: str) -> None:
    assert settings_of(template) == set(names.split())
