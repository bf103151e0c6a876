"""Whole jobs: recipes, runs, reports, and the comparisons that the results pages hold."""
