"""What another store can be made of, and a model be opened from: a checkpoint, or a store."""
