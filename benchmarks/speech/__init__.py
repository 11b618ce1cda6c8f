"""Speech of random models with the released Qwen3-Omni's talker, code predictor and vocoder."""
