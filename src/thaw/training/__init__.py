"""The stages, the one loop that trains them, and the checkpoints that make it resumable."""
