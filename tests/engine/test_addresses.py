"""Where weights lie and what float32 products become: stock differs from itself, and Coterie not from its copy.

transformers maps a checkpoint, so its weights lie where the file has them. On processors that are not from Intel, MKL
adds in an order that depends on the address. With ``MKL_CBWR=AUTO``, as in the rest of these tests, it does not.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zoo.matrix import MATRIX
from zoo.own_processors import gemma4_config
from zoo.weights import build

pytestmark = pytest.mark.slow

LENGTHS = (1, 5, 9, 13, 24)

COUNT = """
import json, os, sys
import torch
import coterie
from conftest import realigned
from zoo.files import stock
mode = sys.argv[2]
os.environ.pop("MKL_CBWR", None)  # conftest sets it; MKL looks when it computes for the first time
if mode:
    os.environ["MKL_CBWR"] = mode
mapped, moved = stock(sys.argv[1]), realigned(stock(sys.argv[1]))
odd = sum(one.data_ptr() % 16 != 0 for one in mapped.parameters())
differ = {"mapped": [], "ours": []}
with coterie.load(sys.argv[1], expert_memory="25%") as ours, torch.no_grad():
    for length in json.loads(sys.argv[3]):
        ids = torch.randint(3, 57, (1, length), generator=torch.Generator().manual_seed(length))
        expected = moved(input_ids=ids).logits
        for name, model in (("mapped", mapped), ("ours", ours)):
            if not torch.equal(model(input_ids=ids).logits, expected):
                differ[name].append(length)
print(json.dumps({"odd": odd, **differ}))
"""


@pytest.fixture(scope="module")
def gemma4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In float32, with parameters of one number between the others: few weights lie at a multiple of 16 bytes."""
    if (why := MATRIX["gemma4"].why_not) is not None:
        pytest.skip(why)
    directory = tmp_path_factory.mktemp("gemma4") / "checkpoint"
    build(MATRIX["gemma4"].model_class, gemma4_config(), torch.float32).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("mode", ["", "AUTO"], ids=["by-address", "alike"])
def test_it_is_stock_with_weights_where_torch_allocates(mode: str, gemma4: Path) -> None:
    tests = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(tests), "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COUNT, str(gemma4), mode, json.dumps(LENGTHS)],
        capture_output=True, text=True, check=False, timeout=900, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["odd"] > 0
    assert found["ours"] == []
    if mode:
        assert found["mapped"] == []
