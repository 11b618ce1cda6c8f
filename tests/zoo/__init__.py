"""Tiny Mixture-of-Experts models with random weights, saved as the checkpoints that transformers itself writes.

Every family has its real class and its real routing, at a hidden size of 64. Weights depend on the name of the
parameter and nothing else, routing spreads over all experts, and generation never stops early.
"""

from zoo.families import ZOO, ZooModel
from zoo.files import checkpoint, load, save, stock
from zoo.inputs import logits
from zoo.matrix import MATRIX

__all__ = ["MATRIX", "ZOO", "ZooModel", "checkpoint", "load", "logits", "save", "stock"]
