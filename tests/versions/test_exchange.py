"""A store made with one release of transformers opens with another, and gives that release's own bits.

The other release is in another environment; ``make test-oldest`` names its Python in ``COTERIE_OTHER_PYTHON``.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version

from coterie.inspection import verify
from zoo import ZOO, logits

OTHER = os.environ.get("COTERIE_OTHER_PYTHON")
# One of each way in which names and layouts differ between checkpoint and module, and one with several components.
NAMES = ("qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3", "jamba", "qwen3_vl_moe", "qwen3_omni_thinker")

needs_other = pytest.mark.skipif(
    OTHER is None, reason="COTERIE_OTHER_PYTHON names no second release of transformers (make test-oldest does)"
)

VERSION = "import transformers; print(transformers.__version__)"
# Of all models at once: starting Python and importing transformers takes longer than all the rest.
EXTRACT = """
import sys, coterie
for checkpoint, store in zip(sys.argv[1::2], sys.argv[2::2]):
    coterie.extract(checkpoint, store)
"""
COMPARE = """
import json, sys, warnings
sys.path.insert(0, sys.argv[1])
warnings.simplefilter("ignore")
import torch
from coterie.engine import load
from zoo import ZOO, logits, stock
torch.set_num_threads(1)
equal = {}
for name, store, checkpoint in zip(sys.argv[2::3], sys.argv[3::3], sys.argv[4::3]):
    inputs, theirs = ZOO[name].inputs(), stock(checkpoint, torch.bfloat16)
    for parameter in theirs.parameters():
        parameter.data = parameter.data.clone()
    equal[name] = torch.equal(logits(load(store, expert_memory="100%"), inputs), logits(theirs, inputs))
print(json.dumps(equal))
"""


def run(code: str, *arguments: str | Path) -> str:
    """What the other environment's Python prints."""
    assert OTHER is not None
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [OTHER, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, timeout=300, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


@pytest.fixture(scope="module")
def names() -> list[str]:
    """The models that both releases have: older ones lack some."""
    return [name for name in NAMES if ZOO[name].why_not is None]


@pytest.fixture(scope="module")
def their_stores(names, zoo_checkpoint, tmp_path_factory) -> Path:
    """A directory of stores that the other release has made, by name."""
    root = tmp_path_factory.mktemp("theirs")
    run(EXTRACT, *[path for name in names for path in (zoo_checkpoint(name, torch.bfloat16), root / name)])
    return root


@needs_other
def test_the_other_environment_has_another_release():
    assert Version(run(VERSION)) != Version(transformers.__version__)


@needs_other
def test_their_stores_open_here(names, their_stores, zoo_checkpoint, zoo_stock, open_model):
    for name in names:
        assert verify(their_stores / name, against=zoo_checkpoint(name, torch.bfloat16)).ok
        inputs = ZOO[name].inputs()
        ours = logits(open_model(their_stores / name, expert_memory="25%"), inputs)
        assert torch.equal(ours, logits(zoo_stock(name, torch.bfloat16), inputs)), name


@needs_other
def test_our_stores_open_there(names, zoo_checkpoint, zoo_store):
    tests = Path(__file__).resolve().parents[1]
    places = [(name, zoo_store(name, torch.bfloat16), zoo_checkpoint(name, torch.bfloat16)) for name in names]
    told = run(COMPARE, tests, *[word for place in places for word in place])
    assert json.loads(told.splitlines()[-1]) == dict.fromkeys(names, True)


@needs_other
def test_both_write_the_same_bytes_for_experts(names, their_stores, zoo_store):
    for name in names:
        ours = zoo_store(name, torch.bfloat16)
        experts = sorted(file.relative_to(ours) for file in (ours / "experts").rglob("*.safetensors"))
        assert experts
        for file in experts:
            assert (their_stores / name / file).read_bytes() == (ours / file).read_bytes(), file
