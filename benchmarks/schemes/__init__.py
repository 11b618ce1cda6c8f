"""Ways of rounding weights, and models rounded by them."""
