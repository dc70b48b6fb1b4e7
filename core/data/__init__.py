"""Token files in Megatron's format: writing, reading, checking."""
