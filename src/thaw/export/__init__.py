"""Exporters: a graph -> files that run elsewhere; one module per format."""
