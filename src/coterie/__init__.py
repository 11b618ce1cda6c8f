"""Run Mixture-of-Experts models whose experts do not fit in memory, exactly, under a byte budget."""
