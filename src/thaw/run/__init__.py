"""Training runs: request, folder, pipeline, report."""
