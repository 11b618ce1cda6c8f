"""What is taken where the user says nothing, in the library and on the command line alike."""

DEFAULT_POLICY = "markov"
"""Name of the eviction policy: the best of them on recorded routing of real models."""
