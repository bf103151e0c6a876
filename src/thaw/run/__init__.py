"""A training run: request, folder, pipeline, report."""
