"""Deployment of a finished run: export, verify, bench, demo."""
