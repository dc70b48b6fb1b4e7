"""The presets that come with the tool, and the scripts that belong to them."""
