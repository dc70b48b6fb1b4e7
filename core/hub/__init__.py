"""Publishing a model folder: generation check, model card, the Hub."""
