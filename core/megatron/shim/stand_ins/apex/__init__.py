"""In place of NVIDIA apex: what Megatron imports of it, by torch's own operators. There is no apex.amp and no apex.contrib."""
