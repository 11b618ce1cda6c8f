"""Requests to a model: its inputs, how tokens are chosen, the loop that generates them, what becomes of them.

:mod:`coterie.generation.steps` is the loop.
"""
