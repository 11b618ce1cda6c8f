"""What the machine offers and what fits on it: budgets and measurements. No torch."""
