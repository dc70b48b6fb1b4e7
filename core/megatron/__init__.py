"""The Megatron-DeepSpeed backend: an external checkout, driven exactly as the original pipeline drives it."""
