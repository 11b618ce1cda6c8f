"""What a store is made of, and what a model is opened from: a checkpoint, or a store."""

from coterie.origins.checkpoint_origin import CheckpointOrigin
from coterie.origins.origin import Origin, OriginBank, OriginModel
from coterie.origins.store_origin import StoreOrigin

__all__ = ["CheckpointOrigin", "Origin", "OriginBank", "OriginModel", "StoreOrigin"]
