"""Hugging Face checkpoints: found, claimed tensor by tensor, and read lazily."""

from coterie.checkpoint.checkpoint import Checkpoint, CheckpointBank, model_dtype
from coterie.checkpoint.dense import DequantisedTensor, UnreadTensor, unread_tensors
from coterie.checkpoint.headers import TensorInfo, read_header
from coterie.checkpoint.location import BUNDLED, Location, resolve_path
from coterie.checkpoint.reading import LazyTensor, read_tensor
from coterie.checkpoint.whole_file import WholeFile

__all__ = [
    "BUNDLED",
    "Checkpoint",
    "CheckpointBank",
    "DequantisedTensor",
    "LazyTensor",
    "Location",
    "TensorInfo",
    "UnreadTensor",
    "WholeFile",
    "model_dtype",
    "read_header",
    "read_tensor",
    "resolve_path",
    "unread_tensors",
]
