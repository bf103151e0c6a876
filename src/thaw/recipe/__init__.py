"""What a run is asked to do: recipes, budgets, and the size of the network."""
