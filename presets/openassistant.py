"""Fetches the conversations that the original pipeline fine-tunes on: OpenAssistant's, with their best answers.

    python openassistant.py OUTPUT

OUTPUT is a folder, which gets chat.jsonl (so as a preset's corpus.script), or the .jsonl file itself. One
`{"text": "### Human: ...### Assistant: ..."}` a line; timdettmers/openassistant-guanaco on the Hugging Face Hub.
"""

from __future__ import annotations

import sys
from pathlib import Path

from download import fetch

URL = "https://huggingface.co/datasets/timdettmers/openassistant-guanaco/resolve/main/openassistant_best_replies_train.jsonl"


def main(argv: list[str]) -> int:
    if len(argv) != 1 or argv[0].startswith("-"):
        print(f"usage: python {Path(__file__).name} OUTPUT", file=sys.stderr)
        return 64
    output = Path(argv[0])
    target = output if output.suffix == ".jsonl" else output / "chat.jsonl"
    return 0 if fetch(URL, target, "give it with --set finetune.files=FILE") else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
