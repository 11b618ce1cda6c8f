import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

import coterie as coterie_package
from coterie.cli import answer
from coterie.hf.tokenizer import load_tokenizer
from zoo.files import stock

DATA = Path(__file__).parents[1] / "data"
FAST = ("--expert-memory", "100%", "-n", "4")
PROMPT = "And it came to pass"


@pytest.fixture(scope="module")
def expected() -> str:
    """What stock transformers writes after the prompt, as this machine computes it."""
    directory = Path(coterie_package.__file__).parent / "bundled"
    tokenizer = load_tokenizer(directory)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    ids = stock(directory, torch.bfloat16).generate(**inputs, max_new_tokens=4, do_sample=False)
    return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :])


def test_text_goes_to_stdout_and_one_line_to_stderr(coterie, expected) -> None:
    outcome = coterie("generate", "bundled", PROMPT, *FAST)
    assert outcome.code == 0
    assert outcome.out == expected + "\n"
    assert len(outcome.err.splitlines()) == 1
    assert "4 new" in outcome.err
    assert "hit rate" in outcome.err


def test_quiet_says_nothing_but_the_text(coterie, expected) -> None:
    outcome = coterie("generate", "bundled", PROMPT, *FAST, "--quiet")
    assert (outcome.out, outcome.err) == (expected + "\n", "")


def test_json_is_all_of_stdout(coterie, expected) -> None:
    outcome = coterie("generate", "bundled", PROMPT, *FAST, "--json")
    found = json.loads(outcome.out)
    assert found["prompt"] == PROMPT
    assert found["text"] == expected
    assert (found["finish_reason"], found["new_tokens"], len(found["token_ids"])) == ("length", 4, 4)
    assert found["prompt_tokens"] > 1
    assert found["decode_tokens_per_s"] > 0
    assert found["stats"]["requested"] == found["stats"]["hits"] + found["stats"]["misses"] > 0
    assert found["stats"]["resident_bytes"] <= found["stats"]["total_expert_bytes"] == 256 * 147456


def test_the_prompt_comes_from_stdin_or_a_file_too(coterie, expected, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT + "\n"))
    assert coterie("generate", "bundled", *FAST, "-q").out == expected + "\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT))
    assert coterie("generate", "bundled", "-", *FAST, "-q").out == expected + "\n"
    (tmp_path / "prompt").write_text(PROMPT + "\n", encoding="utf-8")
    assert coterie("generate", "bundled", "--file", str(tmp_path / "prompt"), *FAST, "-q").out == expected + "\n"


def test_a_word_and_a_picture(coterie) -> None:
    options = ("--expert-memory", "100%", "-q")
    assert coterie("generate", "bundled", "--audio", str(DATA / "go.wav"), *options).out == "go\n"
    shown = coterie("generate", "bundled", "--image", str(DATA / "ankle-boot.png"), *options)
    assert shown.out == "a photo of an ankle boot\n"


def test_sampling_repeats_with_a_seed(coterie) -> None:
    def text(seed: int) -> str:
        options = ("--temperature", "1.5", "--top-p", "0.95", "--top-k", "500", "--seed", str(seed))
        return coterie("generate", "bundled", PROMPT, *FAST, "-q", *options).out

    assert text(1) == text(1) != text(2)


def test_an_answer_has_its_form(coterie, tmp_path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "answer.gbnf"
    schema.write_text('{"type": "object", "properties": {"a": {"enum": [5]}}, "required": ["a"], '
                      '"additionalProperties": false}')  # fmt: skip
    grammar.write_text('root ::= "yes" | "no"')
    options = ("generate", "bundled", PROMPT, "--expert-memory", "100%", "-q", "-n", "60")
    assert json.loads(coterie(*options, "--json-schema", str(schema)).out) == {"a": 5}
    assert coterie(*options, "--grammar-file", str(grammar)).out in ("yes\n", "no\n")
    assert re.fullmatch("[xyz]{3}\n", coterie(*options, "--regex", "[xyz]{3}").out)
    for wrong in (("--regex", "["), ("--regex", "a", "--grammar", str(grammar)), ("--json-schema", str(grammar))):
        refused = coterie(*options, *wrong)
        assert refused.code in (1, 2)
        assert refused.out == ""


def test_json_tells_how_likely_each_token_was(coterie) -> None:
    found = json.loads(coterie("generate", "bundled", PROMPT, *FAST, "--json", "--logprobs", "2").out)
    assert "".join(one["token"] for one in found["logprobs"]) == found["text"]
    assert [one["token_id"] for one in found["logprobs"]] == found["token_ids"]
    assert all(len(one["top_logprobs"]) == 2 and one["logprob"] <= 0 for one in found["logprobs"])
    assert "--json" in coterie("generate", "bundled", PROMPT, *FAST, "--logprobs", "2").err


def test_statistics_and_trace_are_written(coterie, tmp_path) -> None:
    stats, trace = tmp_path / "stats.json", tmp_path / "trace.npz"
    outcome = coterie(
        "generate", "bundled", PROMPT, *FAST, "--stats", str(stats), "--per-token", "--record-trace", str(trace)
    )
    assert outcome.code == 0
    written = json.loads(stats.read_text())
    tokens = sum(written["prefill_tokens"].values()) + sum(written["decode_tokens"].values())
    assert len(written["layers"]) == 8
    assert len(written["tokens"]) == 8 * tokens
    with np.load(trace) as arrays:
        assert arrays["thinker.expert_ids"].shape == (tokens, 8, 4)


def test_a_quarter_of_the_experts_writes_the_same_text(coterie, expected) -> None:
    outcome = coterie("generate", "bundled", PROMPT, "-n", "4", "--expert-memory", "25%", "--eviction", "lfu", "-q")
    assert outcome.out == expected + "\n"


def test_a_partial_store_needs_a_policy(coterie, tmp_path) -> None:
    from coterie.extraction import extract

    extract("bundled", tmp_path / "part", experts="0-7")
    refused = coterie("generate", str(tmp_path / "part"), PROMPT, *FAST)
    assert refused.code == 1
    assert "64 of 256 experts" in refused.err
    allowed = coterie("generate", str(tmp_path / "part"), PROMPT, *FAST, "--missing", "drop", "--json")
    assert json.loads(allowed.out)["stats"]["absent"] > 0
    assert "absent experts" in allowed.err


def test_little_memory_is_remarked_on_in_one_line(coterie) -> None:
    outcome = coterie("generate", "bundled", PROMPT, "-n", "2", "--expert-memory", "1MiB")
    warning, _ = outcome.err.splitlines()
    assert warning.startswith("Warning: The experts have 1.00 MiB")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("bundled", "a", "--eviction", "lruu"), 2, "Did you mean 'lru'?"),
        (("bundled", "a", "--missing", "msak"), 2, "mask"),
        (("bundled", "a", "--image", "/nowhere/a.png"), 2, "does not exist"),
        (("bundled", "a", "--file", __file__), 2, "Both a prompt and --file"),
        (("bundled", "a", "--per-token"), 2, "--stats"),
        (("bundled", "a", "--voice", "x"), 2, "--speak"),
        (("bundled", "a", "--record-trace", "x.csv"), 2, ".npz or .jsonl"),
        (("bundled", "a", "--stats", "/nowhere/x.json"), 2, "There is no directory /nowhere"),
        (("bundled", "a", "--top-p", "7"), 2, "--top-p must be"),
        (("bundled", "a", "--greedy", "--temperature", "1"), 2, "temperature"),
        (("bundled", "a", "--memory", "lots"), 2, "not a size"),
        (("bundled", "a", "--memory", "64MiB"), 1, "would do"),
        (("bundled", "a", "--expert-memory", "1KiB"), 1, "at least"),
        (("bundled", "a", "--component", "thinkr"), 2, "Did you mean 'thinker'?"),
        (("/nowhere/model", "a"), 1, "/nowhere/model"),
        (("some-one/some-model", "a", "--offline"), 1, "some-one/some-model"),
        (("bundled", ""), 1, "empty"),
        (("bundled", "--image", str(DATA / "go.wav")), 1, "go.wav"),
        (("bundled", "a", "--speak", "x.wav"), 1, "no chat template"),
    ],
)
def test_errors_are_one_message_and_the_right_code(coterie, arguments, code, message) -> None:
    outcome = coterie("generate", *arguments)
    assert outcome.code == code
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""


def test_no_prompt_in_a_terminal_is_wrong_usage(coterie, monkeypatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    outcome = coterie("generate", "bundled")
    assert outcome.code == 2
    assert "There is no prompt." in outcome.err


def test_a_prompt_that_is_too_long_keeps_its_own_error_under_a_trace(coterie, tmp_path) -> None:
    options = ("--memory", "6GiB", "--max-context", "2", "--record-trace", str(tmp_path / "t.npz"))
    outcome = coterie("generate", "bundled", PROMPT, *options, "--stats", str(tmp_path / "s.json"))
    assert outcome.code == 1
    assert "more than the 2" in outcome.err
    assert (tmp_path / "s.json").exists()
    assert not (tmp_path / "t.npz").exists()


def test_speech_is_written(coterie, omni, tmp_path) -> None:
    options = ("-n", "3", "--seed", "1", "--expert-memory", "100%", "--json")
    outcome = coterie("generate", str(omni), "w5 w6", "--speak", str(tmp_path / "a.wav"), *options)
    assert outcome.code == 0, outcome.err
    speech = json.loads(outcome.out)["speech"]
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert file.getframerate() == speech["rate"] == 24_000
        assert file.getnframes() / 24_000 == pytest.approx(speech["seconds"])


def test_without_speech_only_the_thinker_is_opened(coterie, omni, tmp_path) -> None:
    stats = tmp_path / "s.json"
    outcome = coterie("generate", str(omni), "w5", "-n", "2", "--expert-memory", "100%", "--stats", str(stats))
    assert outcome.code == 0, outcome.err
    assert list(json.loads(stats.read_text())["components"]) == ["thinker"]


def test_ctrl_c_keeps_what_was_printed_and_writes_statistics(tmp_path) -> None:
    stats, trace = tmp_path / "stats.json", tmp_path / "trace.jsonl"
    command = [sys.executable, "-m", "coterie", "generate", "bundled", "春", "--sample", "--seed", "1", "-n", "3000"]
    command += ["--expert-memory", "100%", "--stats", str(stats), "--record-trace", str(trace)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # Unbuffered: what a buffer had read ahead would be lost to communicate().
    with subprocess.Popen(
        command, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as running:
        begun = running.stdout.read(4)
        running.send_signal(signal.SIGINT)
        rest, errors = running.communicate(timeout=250)
    assert running.returncode == 130, errors
    text = (begun + rest).decode("utf-8")  # nothing but whole characters of text reaches a pipe
    assert begun
    assert text.endswith("\n")
    assert "\x1b" not in text
    summary, last = errors.decode().splitlines()
    assert "(interrupted)" in summary
    assert last == "Interrupted"
    written = json.loads(stats.read_text())
    assert written["decode_tokens"]["thinker"] < 2999
    assert trace.exists()


def test_a_terminal_gets_no_control_characters_from_a_model(monkeypatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    answer.write_text("a\x1b[31mb\tc\n\x9b")
    assert screen.getvalue() == "a\ufffd[31mb\tc\n\ufffd"


def test_an_encoding_that_lacks_a_character_gets_a_sign_for_it(monkeypatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    answer.write_text("a春b")
    assert raw.getvalue() == b"a?b"


def test_a_partial_store_fetches_and_grows(coterie, expected, tmp_path) -> None:
    store = str(tmp_path / "few")
    assert coterie("extract", "bundled", store, "--experts", "0-7", "--json").code == 0
    outcome = coterie("generate", store, PROMPT, *FAST, "--missing", "fetch", "--source", "bundled")
    assert (outcome.code, outcome.out) == (0, expected + "\n")
    fetched = int(re.search(r", (\d+) fetched \(", outcome.err)[1])
    assert fetched > 10
    assert f"{64 + fetched} of 256" in coterie("inspect", store).out
    assert "fetched" not in coterie("generate", store, PROMPT, *FAST, "--missing", "fetch").err


@pytest.mark.parametrize(
    "options",
    [
        ("--temperature", "0", "--top-k", "40", "-q"), ("--temp", "0", "--n-predict", "4"),
        ("--greedy", "--top-p", "1", "--max-tokens=4"), ("--repeat-penalty", "1.0", "--seed", "-1"),
        ("--repetition_penalty", "1", "--top_k=0", "--greedy", "--num_predict", "4"), ("--ctx-size", "64", "-n", "4"),
    ],
)  # fmt: skip
def test_habits_of_other_programs(coterie, expected, options) -> None:
    outcome = coterie("generate", "bundled", PROMPT, *FAST, *options)
    assert (outcome.code, outcome.out.strip("\n")) == (0, expected)


def test_model_and_prompt_may_be_options(coterie, expected) -> None:
    for arguments in (
        ("-m", "bundled", "-p", PROMPT),
        ("bundled", "--prompt", PROMPT),
        (f"--prompt={PROMPT}", "bundled"),
    ):
        outcome = coterie("generate", *arguments, *FAST)
        assert (outcome.code, outcome.out.strip("\n")) == (0, expected)


def test_other_names_are_not_in_the_help_and_unknown_ones_still_errors(coterie) -> None:
    assert "--n-predict" not in coterie("generate", "--help").out
    assert coterie("generate", "bundled", "a", "--mirostat", "1").code == 2


def test_a_text_ends_the_answer(coterie, expected) -> None:
    stop = expected[3:6]
    outcome = coterie("generate", "bundled", PROMPT, *FAST, "--stop", stop, "--stop", "never said")
    assert outcome.out == expected[:3] + "\n"
    assert "(stop)" in outcome.err


def test_what_has_no_effect_is_remarked_on(coterie) -> None:
    outcome = coterie("generate", "bundled", "a", *FAST, "--seed", "1")
    assert "--seed has no effect" in outcome.err
    assert "no effect" not in coterie("generate", "bundled", "a", *FAST, "--seed", "1", "--temperature", "1").err


def test_statistics_do_not_go_to_a_dash(coterie) -> None:
    outcome = coterie("generate", "bundled", "a", *FAST, "--stats", "-")
    assert outcome.code == 2
    assert "--json" in outcome.err


def test_a_model_that_was_trained_to_answer(coterie, omni, tmp_path) -> None:
    raw = coterie("generate", str(omni), "hello", *FAST)
    assert "has a chat template, which was not used" in raw.err
    assert "chat template" not in coterie("generate", str(omni), "hello", *FAST, "--raw").err
    chat = coterie("generate", str(omni), "hello", *FAST, "--chat", "--json", "-q")
    assert {"reasoning", "tool_calls"} <= set(json.loads(chat.out))
    longer = coterie("generate", str(omni), "hello", *FAST, "--system", "Be brief.", "--json", "-q")
    assert json.loads(longer.out)["prompt_tokens"] > json.loads(chat.out)["prompt_tokens"]
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}{{ m.content }}{{ x }}{% endfor %}")
    options = ("--chat-template", str(tmp_path / "mine.jinja"), "--template-option", "x=[1]", "--json", "-q")
    assert coterie("generate", str(omni), "hello", *FAST, *options).code == 0
    for wrong in (("--system", "x", "--raw"), ("--template-option", "x"), ("--chat-template", "/nowhere", "--raw")):
        assert coterie("generate", str(omni), "hello", *FAST, *wrong).code == 2


def test_a_template_that_is_not_used_may_be_broken(coterie, omni, tmp_path) -> None:
    broken = shutil.copytree(omni, tmp_path / "broken")
    config = json.loads((broken / "tokenizer_config.json").read_text())
    (broken / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": {"a": 5}}))
    assert coterie("generate", str(broken), "hello", *FAST, "--raw").code == 0
    chat = coterie("generate", str(broken), "hello", *FAST, "--chat")
    assert chat.code == 1
    assert "chat_template" in chat.err


def test_a_prompt_that_is_not_utf8(coterie, monkeypatch) -> None:
    outcome = coterie("generate", "bundled", "\udcff\udcfe abc", *FAST)
    assert outcome.code == 1
    assert "is not UTF-8 text" in outcome.err
    for encoding, errors in (("utf-8", "strict"), ("ascii", "surrogateescape")):
        stdin = io.TextIOWrapper(io.BytesIO(b"abc \xff"), encoding=encoding, errors=errors)
        monkeypatch.setattr(sys, "stdin", stdin)
        outcome = coterie("generate", "bundled", *FAST)
        assert outcome.code == 1
        assert "is not UTF-8 text" in outcome.err
