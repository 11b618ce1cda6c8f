"""A model over HTTP, in the shapes that clients of OpenAI and Anthropic know: what `coterie serve` serves."""
