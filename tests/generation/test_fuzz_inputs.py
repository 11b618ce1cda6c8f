"""Hostile files of tokenizers, chat templates, processors and generation settings: a result, or an error of Coterie.

``COTERIE_FUZZ=20`` tries a thousand of each.
"""

import json
import os
import random
import shutil
import string
from pathlib import Path

import pytest

from coterie.errors import CoterieError
from coterie.generation.chat import chat_inputs
from coterie.generation.inputs import build_inputs
from coterie.generation.processors import Processors
from coterie.hf.generation_config import _CHECKS, FILE, read_generation_config
from fuzzing import Watch, cases, hostile, mutate, scramble

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200), pytest.mark.filterwarnings("ignore::UserWarning")]

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you, and whence?"}]
NAMES = ["m", "messages", "x", "ns.x", "m.content", "m['role']", "bos_token", "loop.index", "undefined"]
FILTERS = ["trim", "upper", "tojson", "length", "list", "join(x)", "replace('a', 'b' * 1000)", "center(10**8)", "e",
           "tojson(indent=10**7)", "batch(2)|list", "string", "int", "map(attribute='x')|list", "format(1)",
           "indent(10**6)"]  # fmt: skip
STEPS = [
    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100},
    {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"},
    {"type": "Replace", "pattern": {"Regex": ""}, "content": "abcdefgh" * 9},
    {"type": "Prepend", "prepend": "x" * 5000},
    {"type": "NFKD"},
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "ByteLevel"},
]
SPLITS = [
    {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"Regex": "(?:a|aa)+$"}, "behavior": "Removed", "invert": True},
    {"type": "Whitespace"},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "Punctuation", "behavior": "Isolated"},
]
DECODERS = [
    {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 300},
    {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    {"type": "WordPiece", "prefix": "##", "cleanup": True},
    {"type": "CTC", "pad_token": "a", "word_delimiter_token": "b", "cleanup": True},
]  # fmt: skip


@pytest.fixture(scope="module")
def small(bundled) -> dict[str, bytes]:
    """The files of the bundled model, with a tokenizer that is loaded in no time."""
    files = {file.name: file.read_bytes() for file in bundled.glob("*.json")}
    tokenizer = json.loads(files["tokenizer.json"])
    model = tokenizer["model"]
    kept = sorted(model["vocab"].items(), key=lambda pair: pair[1])[:600]
    model["vocab"] = dict(kept)
    model["merges"] = [
        pair for pair in model["merges"] if "".join(pair) in model["vocab"] and set(pair) <= set(model["vocab"])
    ]
    files["tokenizer.json"] = json.dumps(tokenizer).encode()
    return files


def prepare(directory: Path, files: dict[str, bytes]) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for name, data in files.items():
        (directory / name).write_bytes(data)


def written(value: object) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def use_text(directory: Path) -> None:
    processors = Processors(directory, embedding_rows=8192)
    inputs = build_inputs(processors, "Some text, aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa xxxxxxxxxxxxxxxxxxxxxxxxxxxx!\n床")
    assert inputs["input_ids"].shape[1] < 2**22


def hostile_tokenizer(small: dict[str, bytes], rng: random.Random) -> dict[str, bytes]:
    """The files of a model whose tokenizer asks for something else."""
    files = dict(small)
    kind = rng.random()
    tokenizer = json.loads(files["tokenizer.json"])
    if kind < 0.35:
        part = rng.choice(list(tokenizer))
        if part == "model":
            mutate(tokenizer["model"] if rng.random() < 0.5 else tokenizer, rng, extra=("unk_token", "dropout", "type"))
        else:
            mutate(tokenizer, rng, extra=("truncation", "padding", part))
    elif kind < 0.6:
        tokenizer["normalizer"] = {"type": "Sequence", "normalizers": rng.choices(STEPS, k=rng.randrange(1, 8))}
    elif kind < 0.7:
        tokenizer["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": rng.choices(SPLITS, k=rng.randrange(1, 4)),
        }
    elif kind < 0.8:
        tokenizer["decoder"] = {"type": "Sequence", "decoders": rng.choices(DECODERS, k=rng.randrange(1, 6))}
    elif kind < 0.85:
        piece = {"Sequence": {"id": "A", "type_id": 0}}
        tokenizer["post_processor"] = {"type": "TemplateProcessing", "single": [piece] * rng.choice((1, 2, 10**5)),
                                       "pair": [piece], "special_tokens": {}}  # fmt: skip
    files["tokenizer.json"] = written(tokenizer)
    if kind >= 0.85:
        name = rng.choice(("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"))
        if rng.random() < 0.4:
            files[name] = scramble(files.get(name, b"{}"), rng)
        else:
            value = json.loads(files.get(name, b"{}"))
            files[name] = written(
                mutate(value, rng, extra=("tokenizer_class", "model_max_length", "eos_token", "auto_map"))
            )
    return files


def test_tokenizers(small, tmp_path) -> None:
    watch, directory = Watch(), tmp_path / "model"
    for case in range(cases(50)):
        rng = random.Random(case)
        files = hostile_tokenizer(small, rng)
        prepare(directory, files)
        if rng.random() < 0.03:
            os.mkfifo(directory / "merges.txt")
        watch.run(case, lambda: use_text(directory))
    watch.check()


def expression(rng: random.Random, depth: int = 0) -> str:
    kind = rng.random()
    if depth > 3 or kind < 0.3:
        return rng.choice((*NAMES, "'a'", "1", "10**9", "-1", "[]", "none", "1.5", "{}", "range(99999)", "'%d'"))
    if kind < 0.6:
        sign = rng.choice(("+", "*", "~", "%", "//", "**", "-", "and", "in", "=="))
        return f"({expression(rng, depth + 1)} {sign} {expression(rng, depth + 1)})"
    if kind < 0.85:
        return f"{expression(rng, depth + 1)}|{rng.choice(FILTERS)}"
    return f"{expression(rng, depth + 1)}[{expression(rng, depth + 1)}]"


def statements(rng: random.Random, depth: int = 0) -> str:
    made = []
    for _ in range(rng.randrange(1, 4)):
        kind, body = rng.random(), "" if depth > 3 else statements(rng, depth + 1)
        if kind < 0.35:
            made.append(f"{{{{ {expression(rng)} }}}}")
        elif kind < 0.6:
            items = rng.choice(("messages", "range(99999)", expression(rng)))
            made.append(f"{{% for {rng.choice(('m', 'x'))} in {items} %}}{body}{{% endfor %}}")
        elif kind < 0.75:
            made.append(f"{{% if {expression(rng)} %}}{body}{{% else %}}y{{% endif %}}")
        elif kind < 0.85:
            made.append(f"{{% set {rng.choice(('x', 'ns.x'))} = {expression(rng)} %}}{body}")
        elif kind < 0.9:
            made.append(f"{{% macro f(x) %}}{body}{{{{ f(x) }}}}{{% endmacro %}}{{{{ f(1) }}}}")
        else:
            made.append("".join(rng.choices(string.printable + "{}%", k=rng.randrange(20))))
    return "".join(made)


def test_chat_templates(small, tmp_path) -> None:
    watch, directory = Watch(), tmp_path / "model"
    prepare(directory, small)
    processors = Processors(directory)
    for case in range(cases(50)):
        rng = random.Random(case)
        shown = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}" if rng.random() < 0.6 else ""
        template: object = "{% set ns = namespace(x='ab') %}" + shown + statements(rng)
        if rng.random() < 0.1:
            template = rng.choice(
                (hostile(rng), [{"name": "default", "template": template}], {"default": hostile(rng)})
            )
        processors.tokenizer.chat_template = template

        def talk() -> None:
            chat_inputs(processors, TALK)

        watch.run(case, talk)
    watch.check()


def test_processors(small, tmp_path, data) -> None:
    watch, directory = Watch(), tmp_path / "model"
    keys = ("longest_edge", "shortest_edge", "patch_size", "merge_size", "feature_size", "n_fft", "hop_length", "size",
            "chunk_length", "sampling_rate", "min_pixels", "max_pixels", "do_resize", "resample")  # fmt: skip

    def use() -> None:
        processors = Processors(directory)
        errors = []
        for options in ({"images": [data / "sandal.png"]}, {"audios": [data / "go.wav"]}):
            try:
                build_inputs(processors, "", **options)
            except CoterieError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    for case in range(cases(50)):
        rng = random.Random(case)
        files = dict(small)
        name = rng.choice(("preprocessor_config.json", "processor_config.json", "config.json"))
        value = json.loads(files[name])
        if rng.random() < 0.4:
            target = value.get(rng.choice(list(value)))
            holder = target if isinstance(target, dict) and rng.random() < 0.6 else value
            holder[rng.choice(keys)] = rng.choice(
                (10**12, 10**6, 0, -1, "x", None, [], {"height": 10**5, "width": 10**5}, 1, 2**31)
            )
            files[name] = written(value)
        elif rng.random() < 0.2:
            files[name] = scramble(files[name], rng)
        else:
            files[name] = written(mutate(value, rng, extra=keys))
        prepare(directory, files)
        watch.run(case, use)
    watch.check()


def test_generation_settings(tmp_path) -> None:
    watch = Watch()
    for case in range(cases(500)):
        rng = random.Random(case)
        values = {rng.choice(list(_CHECKS)): hostile(rng) for _ in range(rng.randrange(1, 4))}
        data = written(values)
        (tmp_path / FILE).write_bytes(scramble(data, rng) if rng.random() < 0.2 else data)
        watch.run(case, lambda: read_generation_config(tmp_path))
    watch.check()
