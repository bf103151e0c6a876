"""Graphs: a trained network as a list of inference operations, from which cost, int8 and exports are derived."""
