"""The plug-in is registered when it is first needed, once, and touches no other model."""

from __future__ import annotations

import subprocess
import sys

import torch
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

from coterie.integration import register
from zoo import ZOO, logits, stock

IMPORTING = """
import logging, os, signal, sys, threading, warnings
import torch, transformers
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.quantizers import auto

def state():
    return {
        "experts": sorted(ALL_EXPERTS_FUNCTIONS.valid_keys() if hasattr(ALL_EXPERTS_FUNCTIONS, "valid_keys")
                          else ALL_EXPERTS_FUNCTIONS._global_mapping),
        "quantizers": sorted(auto.AUTO_QUANTIZER_MAPPING),
        "configs": sorted(auto.AUTO_QUANTIZATION_CONFIG_MAPPING),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads(), threading.active_count()),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "seed": torch.initial_seed(),
        "random": torch.get_rng_state().sum().item(),
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "warnings": list(warnings.filters),
        "handlers": list(logging.getLogger().handlers),
        "level": logging.getLogger().level,
        "excepthook": sys.excepthook,
        "signal": signal.getsignal(signal.SIGINT),
        "path": list(sys.path),
    }

before = state()
import coterie
import coterie.engine, coterie.integration, coterie.cache, coterie.store, coterie.checkpoint, coterie.routing
after = state()
changed = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
assert not changed, changed
assert "coterie" not in after["experts"] + after["quantizers"] + after["configs"]
print("unchanged")
"""


def test_importing_changes_nothing():
    run = subprocess.run([sys.executable, "-c", IMPORTING], capture_output=True, text=True, timeout=250, check=False)
    assert run.stdout.strip() == "unchanged", run.stderr


def test_importing_the_package_imports_no_torch():
    code = "import coterie, sys; print('torch' in sys.modules, 'transformers' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250, check=True)
    assert run.stdout.split() == ["False", "False"]


def test_registering_again_changes_nothing():
    register()
    before = (
        AUTO_QUANTIZER_MAPPING["coterie"],
        AUTO_QUANTIZATION_CONFIG_MAPPING["coterie"],
        len(AUTO_QUANTIZER_MAPPING),
    )
    register()
    assert before == (
        AUTO_QUANTIZER_MAPPING["coterie"],
        AUTO_QUANTIZATION_CONFIG_MAPPING["coterie"],
        len(AUTO_QUANTIZER_MAPPING),
    )


def test_stock_models_load_and_run_as_before(zoo_checkpoint, zoo_stock, open_model):
    inputs = ZOO["qwen3_moe"].inputs()
    expected = logits(zoo_stock("qwen3_moe", torch.bfloat16), inputs)
    open_model(zoo_checkpoint("qwen3_moe", torch.bfloat16))
    fresh = stock(zoo_checkpoint("qwen3_moe", torch.bfloat16), torch.bfloat16)
    assert torch.equal(logits(fresh, inputs), expected)
    assert fresh.config._experts_implementation == "eager"
    assert not hasattr(fresh, "coterie")
