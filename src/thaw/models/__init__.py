"""Small convolutional networks: blocks, families of submodels, and how two are unified."""
