"""Models whose routers are made to a plan, and profiles of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3MoeConfig

from profiles.conftest import write_profile
from profiles.synthetic import Router, run_facts, shapes
from zoo.families import ZooModel
from zoo.files import save
from zoo.sizes import TEXT

EXPERTS, WIDTH, LAYERS = 24, TEXT["hidden_size"], 4
DOMAINS = ("code", "law", "prose")
GROUPS = np.arange(EXPERTS) % len(DOMAINS)
"""The domain of each expert of a planted layer."""


def planted_rows(seed: int, noise: float = 0.4) -> np.ndarray:
    """Rows [E, D], each the direction of its domain and a little of its own, of different lengths."""
    rng = np.random.default_rng(seed)
    own = rng.standard_normal((EXPERTS, WIDTH))
    rows = rng.standard_normal((len(DOMAINS), WIDTH))[GROUPS] + noise * own
    return rows * rng.lognormal(0, 0.2, (EXPERTS, 1))


def random_rows(seed: int) -> np.ndarray:
    """Rows [E, D] without any plan, but for what all share and a spectrum that falls."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((EXPERTS, WIDTH)) + 0.5) * np.geomspace(1, 0.1, WIDTH)


def routed_checkpoint(directory: Path, routers: list[np.ndarray]) -> Path:
    """A checkpoint of a Qwen3-MoE with these routers."""
    sizes = {"num_hidden_layers": len(routers), "num_experts": EXPERTS, "num_experts_per_tok": 8}
    config = Qwen3MoeConfig(**TEXT | sizes, moe_intermediate_size=8, decoder_sparse_step=1)
    directory.mkdir()
    save(ZooModel(name="planted", class_name="Qwen3MoeForCausalLM", config=lambda: config), torch.float32, directory)
    file = directory / "model.safetensors"
    tensors = load_file(file)
    for layer, rows in enumerate(routers):
        name = f"model.layers.{layer}.mlp.gate.weight"
        assert tensors[name].shape == rows.shape
        tensors[name] = torch.tensor(rows, dtype=torch.float32)
    save_file(tensors, file, metadata={"format": "pt"})
    return directory


def planted_profile(path: Path, identity: str, planted_layers: tuple[int, ...]) -> Path:
    """A profile in which the experts of planted layers serve their domains, and pictures are of one domain alone."""
    router = Router(
        layers=LAYERS,
        experts=EXPERTS,
        top_k=8,
        planted={
            (layer, domain): tuple(np.flatnonzero(index == GROUPS).tolist())
            for layer in planted_layers
            for index, domain in enumerate(DOMAINS)
        },
    )
    banks = shapes(LAYERS, EXPERTS, 8)
    for seed, (modality, domains) in enumerate((("text", DOMAINS[:2]), ("image", DOMAINS[2:]))):
        run = run_facts(banks, identity=identity)
        write_profile(path, router, dict.fromkeys(domains, 8), run=run, modality=modality, seed=seed, tokens=32)
    return path
