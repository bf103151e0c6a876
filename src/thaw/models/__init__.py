"""Small convolutional networks: blocks, families of submodels, and their fusion into one model."""
