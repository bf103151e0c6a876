"""Exporters: a graph -> files that run elsewhere, one format a file."""
