"""A whole Qwen3-Omni of full size with random weights: encoders, thinker, talker, code predictor and code2wav.

It is written straight as a store. Thinker and talker say what is known beforehand, see :mod:`fullsize.walk`: the
thinker token ids, the talker first codes of frames. So the routing of both is designed, and precision of one part does
not change what another part has to compute. All other weights are random, scaled so that nothing overflows.
"""
