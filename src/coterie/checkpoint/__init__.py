"""Hugging Face checkpoints: found, claimed tensor by tensor, and read lazily."""

from coterie.checkpoint.checkpoint import Checkpoint, CheckpointBank
from coterie.checkpoint.dense import DequantisedTensor, UnreadTensor, unread_tensors
from coterie.checkpoint.dtype import model_dtype
from coterie.checkpoint.fingerprints import Router, model_identity, router_names
from coterie.checkpoint.headers import TensorInfo, read_header
from coterie.checkpoint.later import LaterTensors, Postponing
from coterie.checkpoint.location import Location, nothing_to_limit
from coterie.checkpoint.packed import PackedWeight
from coterie.checkpoint.reading import LazyTensor, read_tensor
from coterie.checkpoint.whole_file import WholeFile

__all__ = [
    "Checkpoint",
    "CheckpointBank",
    "DequantisedTensor",
    "LaterTensors",
    "LazyTensor",
    "Location",
    "PackedWeight",
    "Postponing",
    "Router",
    "TensorInfo",
    "UnreadTensor",
    "WholeFile",
    "model_dtype",
    "model_identity",
    "nothing_to_limit",
    "read_header",
    "read_tensor",
    "router_names",
    "unread_tensors",
]
