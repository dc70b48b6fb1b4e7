"""Training a SentencePiece tokenizer and proving its Hugging Face twin equal to it."""
