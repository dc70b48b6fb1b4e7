"""In place of torchvision: Megatron imports its vision models for every training, and uses none of them for a language model."""
