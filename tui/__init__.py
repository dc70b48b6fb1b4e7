"""The terminal UI: reads the run directory and sends requests; all work is in core."""
