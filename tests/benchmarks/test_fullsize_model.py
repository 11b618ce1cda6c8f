"""One set of weights in three files: a store that verifies, a GGUF with the same bits, a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import coterie
from benchmarks.gguf_reader import read_gguf
from coterie.quant import SCHEMES
from coterie.spec import BankKey
from coterie.store import Store
from fullsize import gguf_file
from fullsize.as_checkpoint import write_as_checkpoint
from fullsize.as_gguf import write_as_gguf
from fullsize.as_store import write_as_store
from fullsize.coded import CodedMatrix, draw, encode
from fullsize.mixed import SHARES, write_mixed
from fullsize.model import FullSizeModel
from fullsize.shapes import SHAPES, gguf_nbytes, store_nbytes, weight_count
from synthetic import Dimensions

MODEL = FullSizeModel(SHAPES["tiny"])
GATE_UP_DOWN = ("gate", "up", "down")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fullsize") / "store"
    write_as_store(path, MODEL, "tiny")
    return path


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fullsize") / "tiny.gguf"
    write_as_gguf(path, MODEL, "tiny")
    return path


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(seed))


class TestCodes:
    def test_codes_are_normal_and_the_spread_is_as_asked(self) -> None:
        matrix = draw(rng(), 256, 1024, 0.02)
        assert matrix.shape == (256, 1024)
        codes = matrix.codes()
        assert codes.min() == -8
        assert codes.max() == 7
        assert abs(codes.mean()) < 0.05
        assert matrix.values().std() == pytest.approx(0.02, rel=0.05)

    @pytest.mark.parametrize("spread", [1e-3, 0.0217, 0.31, 1.0])
    def test_values_are_bfloat16_and_scales_both_sixteen_bit_floats(self, spread: float) -> None:
        matrix = draw(rng(1), 8, 640, spread)
        values = torch.from_numpy(matrix.values())
        assert torch.equal(values.bfloat16().float(), values)
        scales = torch.from_numpy(matrix.scales)
        assert torch.equal(scales.half().float(), scales)
        assert torch.equal(scales.bfloat16().float(), scales)
        assert len(np.unique(matrix.scales)) > 1

    def test_the_scheme_dequantises_to_the_values(self) -> None:
        matrix = draw(rng(2), 16, 192, 0.1)
        packed, pairs = matrix.int4()
        parts = torch.from_numpy(packed), torch.from_numpy(pairs.view(np.int16)).view(torch.bfloat16)
        found = SCHEMES["int4"].dequantise(parts, 192, torch.float32)
        assert np.array_equal(found.numpy(), matrix.values())

    def test_encoding_takes_the_nearest_code(self) -> None:
        values = rng(3).standard_normal((4, 128), dtype=np.float32)
        coded = encode(values, 0.3125)
        assert np.array_equal(np.unique(coded.scales), [np.float32(0.3125)])
        error = np.abs(coded.values() - values.clip(-8 * 0.3125, 7 * 0.3125))
        assert error.max() <= 0.3125 / 2 + 1e-6


class TestStore:
    def test_it_verifies_and_opens(self, store: Path) -> None:
        assert coterie.verify(store).ok
        model = coterie.load(store, expert_memory="100%")
        assert type(model).__name__ == "Qwen3MoeForCausalLM"
        assert model.lm_head.weight.shape == (512, 256)
        model.coterie.close()

    def test_experts_have_the_model_s_values(self, store: Path) -> None:
        opened = Store.open(store)
        key = BankKey("text", 1, "mlp").expert(5)
        layout = opened.layout(key)
        record = bytearray(layout.nbytes)
        opened.read_into(key, memoryview(record))
        fields = {
            field.name: np.frombuffer(record, dtype=np.uint8, count=field.nbytes, offset=field.offset)
            for field in layout.fields
        }
        expert = MODEL.expert(1, 5)
        wanted = {"gate_up_proj": np.concatenate([expert.gate.values(), expert.up.values()])}
        wanted["down_proj"] = expert.down.values()
        for name, values in wanted.items():
            rows, columns = values.shape
            packed = torch.from_numpy(fields[f"{name}_int4"].copy()).view(rows, columns // 2)
            scales = torch.from_numpy(fields[f"{name}_int4_scales"].copy()).view(torch.bfloat16).view(rows, -1, 2)
            found = SCHEMES["int4"].dequantise((packed, scales), columns, torch.float32)
            assert np.array_equal(found.numpy(), values)

    def test_an_interrupted_one_is_resumed_to_the_same_bytes(
        self, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = FullSizeModel.expert

        def expert(self: FullSizeModel, layer: int, number: int) -> object:
            if layer == 1 and number == 3:
                raise KeyboardInterrupt
            return whole(self, layer, number)

        with monkeypatch.context() as patch:
            patch.setattr(FullSizeModel, "expert", expert)
            with pytest.raises(KeyboardInterrupt):
                write_as_store(tmp_path / "store", MODEL, "tiny")
        assert not (tmp_path / "store" / "coterie.json").exists()
        write_as_store(tmp_path / "store", MODEL, "tiny")
        for file in sorted(path.relative_to(store) for path in store.rglob("*") if path.is_file()):
            assert (tmp_path / "store" / file).read_bytes() == (store / file).read_bytes(), file


class TestGguf:
    def test_every_tensor_has_the_model_s_bits(self, gguf: Path) -> None:
        tensors = read_gguf(gguf).tensors
        for tensor in MODEL.dense():
            wanted = MODEL.coded(tensor).values() if tensor.kind == "coded" else MODEL.plain(tensor)
            assert np.array_equal(tensors.pop(tensor.gguf), wanted), tensor.name
        for layer in range(MODEL.dimensions.layers):
            for name in GATE_UP_DOWN:
                found = tensors.pop(f"blk.{layer}.ffn_{name}_exps.weight")
                for expert in range(MODEL.dimensions.experts):
                    wanted = MODEL.expert_matrix(layer, expert, name).values()  # type: ignore[arg-type]
                    assert np.array_equal(found[expert], wanted)
        assert not tensors

    def test_its_metadata_describe_the_model(self, gguf: Path) -> None:
        metadata = read_gguf(gguf).metadata
        assert metadata["general.architecture"] == "qwen3moe"
        assert metadata["qwen3moe.block_count"] == 2
        assert metadata["qwen3moe.expert_used_count"] == 2
        assert metadata["qwen3moe.rope.freq_base"] == 1e6
        assert metadata["tokenizer.ggml.add_bos_token"] is False
        texts = metadata["tokenizer.ggml.tokens"]
        assert len(set(texts)) == 512
        assert {len(text) for text in texts} == {3}

    def test_the_gguf_package_agrees(self, gguf: Path) -> None:
        package = pytest.importorskip("gguf", reason="the gguf package is not installed")
        from gguf.quants import dequantize

        found = {tensor.name: tensor for tensor in package.GGUFReader(gguf).tensors}
        ours = read_gguf(gguf).tensors
        assert found.keys() == ours.keys()
        for name, tensor in found.items():
            assert np.array_equal(dequantize(tensor.data, tensor.tensor_type).reshape(ours[name].shape), ours[name])

    def test_an_interrupted_one_is_resumed_to_the_same_bytes(
        self, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written: list[str] = []
        whole = gguf_file._write

        def write(file: object, tensor: gguf_file.GgufTensor, progress: object) -> None:
            if len(written) == 9:
                raise KeyboardInterrupt
            written.append(tensor.name)
            whole(file, tensor, progress)  # type: ignore[arg-type]

        path = tmp_path / "tiny.gguf"
        monkeypatch.setattr(gguf_file, "_write", write)
        with pytest.raises(KeyboardInterrupt):
            write_as_gguf(path, MODEL, "tiny")
        assert not path.exists()
        first = set(written)
        written[:] = []
        monkeypatch.setattr(gguf_file, "_write", lambda *given: (written.append(given[1].name), whole(*given)))
        write_as_gguf(path, MODEL, "tiny")
        assert path.read_bytes() == gguf.read_bytes()
        assert first.isdisjoint(written)

    def test_a_tensor_of_another_size_is_refused(self, tmp_path: Path) -> None:
        def chunks() -> Iterator[bytes]:
            yield bytes(12)

        tensor = gguf_file.GgufTensor(name="a", shape=(4,), type=gguf_file.F32, nbytes=16, chunks=chunks)
        with pytest.raises(ValueError, match="12 bytes instead of 16"):
            gguf_file.write_gguf(tmp_path / "a.gguf", {}, [tensor])


class TestCheckpoint:
    def test_its_extraction_keeps_the_values(self, tmp_path: Path) -> None:
        write_as_checkpoint(tmp_path / "checkpoint", MODEL)
        index = json.loads((tmp_path / "checkpoint" / "model.safetensors.index.json").read_text())
        routers = 2 * MODEL.dimensions.layers * MODEL.dimensions.experts * MODEL.dimensions.hidden
        assert index["metadata"]["total_size"] > 2 * weight_count(MODEL.dimensions) + routers
        loaded = coterie.load(tmp_path / "checkpoint", expert_memory="100%")
        logits = loaded(torch.tensor([MODEL.walk.tokens(0, 8)])).logits
        assert logits[0].argmax(-1).tolist() == MODEL.walk.tokens(1, 8)
        loaded.coterie.close()


def test_shapes_that_cannot_be_coded_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 64"):
        FullSizeModel(Dimensions(hidden=96))
    with pytest.raises(ValueError, match="texts for 238328 ids"):
        FullSizeModel(Dimensions(vocabulary=300_000))


def test_sizes_are_known_beforehand(store: Path, gguf: Path) -> None:
    # The rest is configuration and tokenizer, headers, padding, routers and norms.
    found = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    assert store_nbytes(MODEL.dimensions) < found < store_nbytes(MODEL.dimensions) + 100_000
    assert gguf_nbytes(MODEL.dimensions) < gguf.stat().st_size < gguf_nbytes(MODEL.dimensions) + 100_000


def test_full_sizes_are_the_released_ones() -> None:
    weights = weight_count(SHAPES["qwen3-30b-a3b"])
    assert round(weights / 1e9, 1) == 30.5
    assert SHAPES["qwen3-omni-thinker"].vocabulary == 152064


def test_rows_of_a_matrix_are_those_of_its_values() -> None:
    matrix = draw(rng(4), 6, 64, 1.0)
    part: CodedMatrix = matrix.rows(np.array([4, 1]))
    assert np.array_equal(part.values(), matrix.values()[[4, 1]])


def test_mixed_levels_have_the_shares_of_an_allocation(store: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="lossy already"):
        write_mixed(tmp_path / "mixed", store)
    mixed = Store.open(tmp_path / "mixed")
    for number in (0, 1):
        levels = [mixed.scheme(key).split("+")[number % len(mixed.scheme(key).split("+"))] for key in mixed.keys()]
        assert {level: levels.count(level) / len(levels) for level in set(SHARES)} == {
            level: SHARES.count(level) / len(SHARES) for level in set(SHARES)
        }
