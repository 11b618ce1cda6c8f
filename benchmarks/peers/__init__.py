"""Engines that run the same model side by side: how each is built, started, and what its output means."""
