"""Fine-tuning by the original pipeline's own program, llm-jp-sft's train.py: its command, its log, what it leaves."""
