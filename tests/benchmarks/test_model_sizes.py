"""The table of models in the README: what it computes of a shape is what a real model of that shape takes."""

from pathlib import Path

import pytest
import torch

import model_sizes
from coterie.extraction import extract
from coterie.hf.configs import load_config
from coterie.inspection import MemoryFit
from coterie.planner import plan
from model_sizes import Released, smallest


def released(directory: Path, billions: float | None = None) -> Released:
    config = load_config(directory)
    shape = {key: value for key, value in config.to_diff_dict().items() if key not in ("architectures", "dtype")}
    weights = model_sizes.weights_of(model_sizes.build_skeleton(_class(config), config, torch.bfloat16))
    return Released(
        name="tiny",
        class_name=config.architectures[0],
        config_class=type(config).__name__,
        billions=weights / 1e9 if billions is None else billions,
        shape=shape,
    )


def _class(config):
    import transformers

    return getattr(transformers, config.architectures[0])


def test_a_file_without_content_tells_what_the_real_one_takes(zoo_checkpoint, tmp_path: Path) -> None:
    real = zoo_checkpoint("qwen3_moe", torch.bfloat16)
    (tmp_path / "laid-out").mkdir()
    found = model_sizes.sizes(released(real), tmp_path / "laid-out")
    report = extract(real, tmp_path / "store", scheme="int4", dense_scheme="int4")
    assert found.store == report.written_nbytes
    weights = real / "model.safetensors"
    header = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    assert found.download == weights.stat().st_size - header
    step = 64 << 20
    assert fits(tmp_path / "store", found.least).enough
    assert not fits(tmp_path / "store", found.least - step).enough
    assert fits(tmp_path / "store", found.all_experts).share == 1
    assert fits(tmp_path / "store", found.all_experts - step).share < 1


def fits(store: Path, memory: int) -> MemoryFit:
    return plan(store, memory=memory, measure=False).budgets[0].memory


def test_a_shape_that_is_not_the_released_one_is_refused(zoo_checkpoint, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="billion"):
        model_sizes.lay_out(released(zoo_checkpoint("qwen3_moe", torch.bfloat16), billions=30.5), tmp_path)


def test_the_smallest_budget() -> None:
    assert smallest(lambda memory: memory >= 1 << 30) == 1 << 30
    assert smallest(lambda memory: memory > 1 << 30) == (1 << 30) + (64 << 20)


def test_speed_is_what_was_measured_of_that_shape_alone() -> None:
    assert "tok/s" in model_sizes.measured("qwen3-30b-a3b")
    assert model_sizes.measured(None) == "not measured"
    with pytest.raises(SystemExit):
        model_sizes.measured("another-shape")
