"""`coterie extract` of a quantised checkpoint: what is kept, and what was rounded."""

from pathlib import Path

from safetensors.torch import load_file, save_file

from zoo.packed import Packed, packed


def test_it_says_that_nothing_was_rounded_or_how_much(coterie, tmp_path: Path) -> None:
    checkpoint, _ = packed(Packed(kind="mlx", group=64), tmp_path / "made")
    outcome = coterie("extract", str(checkpoint), str(tmp_path / "store"))
    assert outcome.code == 0
    assert "kept as they are: nothing was rounded." in " ".join(outcome.out.split())
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    # Far from 0, a bias has no bits left for the steps of its group.
    name = "model.layers.0.mlp.switch_mlp.up_proj.biases"
    tensors[name] = tensors[name] + 100
    save_file(tensors, path, metadata={"format": "pt"})
    outcome = coterie("extract", str(checkpoint), str(tmp_path / "other"))
    assert outcome.code == 0
    assert "of a step of their group" in " ".join(outcome.out.split())
    compared = coterie("verify", str(tmp_path / "other"), "--against", str(checkpoint))
    assert compared.code == 0


def test_a_scheme_of_as_many_bits_is_refused(coterie, tmp_path: Path) -> None:
    checkpoint, _ = packed(Packed(kind="compressed-tensors", group=32), tmp_path / "made")
    outcome = coterie("extract", str(checkpoint), str(tmp_path / "store"), "--scheme", "int4")
    assert outcome.code == 2
    assert "rounded a second time" in " ".join(outcome.err.split())
