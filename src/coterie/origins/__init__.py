"""What a store is made of, compared with and completed from: a checkpoint, or another store."""

from coterie.origins.checkpoint_origin import CheckpointOrigin
from coterie.origins.cut import Cut
from coterie.origins.origin import Origin, OriginBank, OriginModel
from coterie.origins.store_origin import StoreOrigin

__all__ = ["CheckpointOrigin", "Cut", "Origin", "OriginBank", "OriginModel", "StoreOrigin"]
