"""The only reader of transformers' internals: classes, banks of experts, name mapping, the experts registry."""
