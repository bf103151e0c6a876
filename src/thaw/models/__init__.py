"""Small convolutional networks: blocks, families of submodels, and the unification of two submodels."""
