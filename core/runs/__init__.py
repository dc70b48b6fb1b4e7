"""The run directory, the supervisor that owns it, and those who only look at it."""
