"""Hugging Face checkpoints: found, claimed tensor by tensor, and read lazily."""

from coterie.checkpoint.checkpoint import Checkpoint, CheckpointBank
from coterie.checkpoint.headers import TensorInfo, read_header
from coterie.checkpoint.location import Location
from coterie.checkpoint.reading import LazyTensor, read_tensor

__all__ = ["Checkpoint", "CheckpointBank", "LazyTensor", "Location", "TensorInfo", "read_header", "read_tensor"]
