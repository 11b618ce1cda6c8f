"""Opens a model under a budget, builds its inputs, generates and records."""
