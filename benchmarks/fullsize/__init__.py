"""Full-size synthetic models: one set of weights as a Coterie store, as a GGUF file and as a checkpoint.

Weights are drawn as four-bit codes with a scale per 64 of a row, so that all three files hold exactly the same values
and none of them is made by rounding another. Routing is designed, not left to chance: see :mod:`fullsize.walk`.
"""
