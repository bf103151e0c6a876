"""From a finished run to a device: export, verify, bench, demo."""
