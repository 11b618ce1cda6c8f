"""Names that other programs have for models, and directories that hold none."""

import struct
from pathlib import Path

import pytest

from coterie.checkpoint import Location
from coterie.errors import CheckpointNotFoundError, CoterieError, StoreNotFoundError, UnsupportedError, UsageError
from coterie.files.gguf import original_of
from coterie.inspection import inspect


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf(pairs: dict[str, str], *, before: bytes = b"", count: int | None = None) -> bytes:
    """The start of a GGUF file with these texts."""
    body = before + b"".join(text(key) + struct.pack("<I", 8) + text(value) for key, value in pairs.items())
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs) + bool(before) if count is None else count) + body


@pytest.mark.parametrize(
    ("name", "error", "advice"),
    [
        ("https://huggingface.co/Qwen/Qwen3-30B-A3B", UsageError, r"'Qwen/Qwen3-30B-A3B'"),
        ("https://huggingface.co/Qwen/Qwen3-30B-A3B/tree/main", UsageError, r"'Qwen/Qwen3-30B-A3B'"),
        ("huggingface.co/Qwen/Qwen3-30B-A3B", UsageError, r"'Qwen/Qwen3-30B-A3B'"),
        ("hf.co/Qwen/Qwen3-30B-A3B", UsageError, r"'Qwen/Qwen3-30B-A3B'"),
        ("s3://bucket/model", UsageError, "address"),
        ("qwen3:30b", CheckpointNotFoundError, "Ollama"),
        ("hf.co/unsloth/Qwen3-30B-A3B-GGUF:Q4_K_M", CheckpointNotFoundError, "Ollama"),
        ("missing.gguf", CheckpointNotFoundError, "GGUF"),
        ("", UsageError, "empty"),
        ("  ", UsageError, "empty"),
        ("a\0b", UsageError, "no name"),
        ("x" * 5000, CheckpointNotFoundError, "no directory"),
    ],
)
def test_names_of_other_programs(name, error, advice):
    for call in (inspect, Location.find):
        with pytest.raises(error, match=advice):
            call(name)


@pytest.mark.parametrize(
    ("file", "error", "match"),
    [
        ("model.safetensors", CheckpointNotFoundError, "is a file; a model is a directory.*Pass the directory"),
        ("config.json", CheckpointNotFoundError, "Pass the directory"),
        ("pytorch_model.bin", UnsupportedError, "pickle"),
        ("notes", CheckpointNotFoundError, "is a file"),
        ("model.gguf", UnsupportedError, r"is a GGUF file.*'Qwen/Qwen3-30B-A3B'"),
    ],
)
def test_a_file_in_place_of_a_directory(file, error, match, tmp_path):
    content = gguf({"general.base_model.0.repo_url": "https://huggingface.co/Qwen/Qwen3-30B-A3B"})
    (tmp_path / file).write_bytes(content)
    for call in (inspect, Location.find):
        with pytest.raises(error, match=match) as caught:
            call(str(tmp_path / file))
        assert caught.value.path == tmp_path / file


def test_a_directory_that_is_neither(tmp_path):
    with pytest.raises(StoreNotFoundError, match=r"neither a store nor a checkpoint.*coterie\.json.*config\.json"):
        inspect(tmp_path)


def test_a_checkpoint_without_its_configuration(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(StoreNotFoundError, match=r"model\.safetensors and no config\.json"):
        inspect(tmp_path)


def test_a_directory_around_a_model(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "config.json").touch()
    with pytest.raises(StoreNotFoundError, match=r"Did you mean .*inner'"):
        inspect(tmp_path)


@pytest.mark.parametrize("configured", [False, True])
def test_a_directory_with_a_gguf_file(configured, tmp_path):
    (tmp_path / "a.gguf").write_bytes(gguf({"general.base_model.0.repo_url": "https://huggingface.co/org/original"}))
    if configured:
        (tmp_path / "config.json").write_text('{"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}')
    with pytest.raises(UnsupportedError, match=r"GGUF.*'org/original'") as caught:
        inspect(tmp_path)
    assert caught.value.original == "org/original"


def test_the_original_of_a_gguf_file(tmp_path):
    path = tmp_path / "a.gguf"
    tokens = text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 3) + text("a") + text("bc") + text("")
    number = text("general.file_type") + struct.pack("<II", 4, 7)
    for before in (b"", tokens, number):
        path.write_bytes(gguf({"general.source.repo_url": "https://huggingface.co/org/original/"}, before=before))
        assert original_of(path) == "org/original"
    path.write_bytes(gguf({"general.name": "x"}))
    assert original_of(path) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        b"GGML" + bytes(100),
        gguf({}, count=2**63),
        gguf({}, before=text("a") + struct.pack("<I", 99)),
        gguf({}, before=struct.pack("<Q", 2**62)),
        gguf({}, before=text("a") + struct.pack("<IIQ", 9, 8, 2**62)),
        gguf({}, before=text("a") + struct.pack("<IIQ", 9, 9, 4)),
        gguf({}, before=text("a") + struct.pack("<IIQ", 9, 4, 2**62)),
    ],
)
def test_a_hostile_gguf_file(content, tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    assert original_of(path) is None
    with pytest.raises(UnsupportedError, match="is a GGUF file"):
        inspect(str(path))


def test_every_recognised_name_is_an_error_of_ours(tmp_path):
    (tmp_path / "pipe").symlink_to(Path("/dev/null"))
    with pytest.raises(CoterieError, match="is a file"):
        inspect(str(tmp_path / "pipe"))
