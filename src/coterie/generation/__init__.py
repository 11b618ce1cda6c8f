"""One request to a model: its inputs, how tokens are chosen, the text that comes of them, turns of a conversation."""
