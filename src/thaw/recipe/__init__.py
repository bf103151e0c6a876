"""Settings of a run: recipes, budgets, and the size of the network."""
