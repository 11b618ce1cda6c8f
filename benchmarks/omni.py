"""Writes Qwen3-Omni thinkers of any size with random bf16 weights: the towers of the bundled model, and larger experts.

Its tokenizer, chat template and processors are the bundled model's, so it takes pictures and sounds.

    python benchmarks/omni.py OUT --layers 8 --experts 128 --expert-hidden 768
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

import coterie
from synthetic import Dimensions, write_checkpoint

_BUNDLED = Path(coterie.__file__).parent / "bundled"
_TOWERS = ("visual.", "audio_tower.")
_FILES = ("generation_config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json",
          "tokenizer_config.json")  # fmt: skip
WIDTH = 256
"""Of the text part: the towers end in it."""
VOCABULARY = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class OmniDimensions(Dimensions):
    """What makes the size of the text part."""

    hidden: int = WIDTH
    heads: int = 8
    vocabulary: int = VOCABULARY

    def config(self) -> dict[str, object]:
        """The content of ``config.json``."""
        config: dict[str, Any] = json.loads((_BUNDLED / "config.json").read_text())
        third = self.head_dim // 6
        config["text_config"] |= {
            "head_dim": self.head_dim,
            "intermediate_size": self.expert_hidden * 4,
            "max_position_embeddings": 32768,
            "moe_intermediate_size": self.expert_hidden,
            "num_attention_heads": self.heads,
            "num_experts": self.experts,
            "num_experts_per_tok": self.top_k,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
        }
        config["text_config"]["rope_parameters"]["mrope_section"] = [self.head_dim // 2 - 2 * third, third, third]
        return config

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes: the towers', then the text part's, layer by layer."""
        with safe_open(_BUNDLED / "model.safetensors", "numpy") as weights:
            for name in weights.keys():
                if name.startswith(_TOWERS):
                    yield name, tuple(weights.get_slice(name).get_shape())
        yield from Dimensions.tensors(self)


def write_omni(directory: Path, dimensions: OmniDimensions) -> Path:
    """Writes a checkpoint and returns its directory.

    Args:
        directory: Made if need be; files of the same names are replaced.
        dimensions: Size of the model.
    """
    if dimensions.hidden != WIDTH or dimensions.vocabulary != VOCABULARY:
        raise ValueError(f"The bundled towers and tokenizer ask for {WIDTH} wide tokens of their own vocabulary.")
    write_checkpoint(directory, dimensions)
    for name in _FILES:
        shutil.copy(_BUNDLED / name, directory)
    return directory


def main() -> int:
    """Writes the checkpoint that the command line describes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    for name in ("layers", "experts", "top_k", "expert_hidden", "heads", "kv_heads", "head_dim"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(OmniDimensions(), name))
    given = vars(parser.parse_args())
    out = write_omni(given.pop("out"), OmniDimensions(**given))
    print(f"{out}: {sum(path.stat().st_size for path in out.iterdir()) / 1e9:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
