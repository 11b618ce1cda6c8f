"""Lets torchvision be imported beside a torch of another build: a pytest plugin, for ``make test-torchvision``.

A wheel of torchvision holds operators compiled for one build of torch. Beside another one (a wheel for CUDA beside a
torch for the CPU) they do not load, and the import fails, because shapes are registered for operators that nobody
declared. transformers' processors need none of these operators: what they use is written in Python, on torch. So the
operators are declared here, without kernels. A call of one fails; all else is computed by torchvision itself.
"""

from __future__ import annotations

import importlib
import sys

import torch

#: The operators whose shapes torchvision registers without looking whether its library was loaded.
DECLARATIONS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

try:
    importlib.import_module("torchvision")
except RuntimeError:
    # What was declared is withdrawn when the library object is collected.
    LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
    for declaration in DECLARATIONS:
        LIBRARY.define(declaration)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    importlib.import_module("torchvision")
