"""Everything of llm-wizard that works without a screen; never imports textual, rich or questionary."""

__version__ = "0.1.0"
