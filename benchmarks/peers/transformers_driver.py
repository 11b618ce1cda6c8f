"""Stock transformers on a checkpoint, in memory or with accelerate's disk offload: a process that is measured."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from peers.coterie_driver import generate, ids_of, options

_OVERHEAD = 1 << 30
"""What the process takes beside weights that accelerate is told to keep in memory."""


def main() -> int:
    """Runs what the command line describes."""
    began = time.perf_counter()
    parser = options(__doc__)
    parser.add_argument("--offload", type=Path, help="let accelerate keep there what --memory does not hold")
    given = parser.parse_args()

    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(given.threads)
    placing = {}
    if given.offload is not None:
        given.offload.mkdir(parents=True, exist_ok=True)
        room = {"cpu": max(given.memory - _OVERHEAD, _OVERHEAD // 4)}
        placing = {"device_map": "auto", "max_memory": room, "offload_folder": str(given.offload)}
    imported = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.bfloat16, **placing).eval()
    loaded = time.perf_counter()
    times = generate(model, ids_of(given.prompt), given.new_tokens)
    given.report.write_text(json.dumps(times | {"import_s": imported - began, "load_s": loaded - imported}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
