"""In place of apex's extension, which Megatron imports by name and never calls itself."""
