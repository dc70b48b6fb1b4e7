"""Fetches the texts that the original pipeline learns from: RedPajama's arXiv file, and OpenAssistant's conversations.

    python original_texts.py FOLDER

FOLDER gets pretrain.jsonl and chat.jsonl (so as a preset's corpus.script). A fetch that was cut off goes on where it was when the
script runs again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from download import fetch
from openassistant import URL as CONVERSATIONS

ARXIV = "https://data.together.xyz/redpajama-data-1T/v1.0.0/arxiv/arxiv_024de5df-1b7f-447c-8c3a-51407d8d6732.jsonl"


def main(argv: list[str]) -> int:
    if len(argv) != 1 or argv[0].startswith("-"):
        print(f"usage: python {Path(__file__).name} FOLDER", file=sys.stderr)
        return 64
    folder = Path(argv[0])
    done = fetch(CONVERSATIONS, folder / "chat.jsonl", "give it with --set finetune.files=FILE") and fetch(
        ARXIV, folder / "pretrain.jsonl", "give it with --set corpus.files=FILE"
    )
    return 0 if done else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
