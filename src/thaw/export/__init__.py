"""Exporters: a Graph -> files that run elsewhere; one target a file, and none knows another."""
