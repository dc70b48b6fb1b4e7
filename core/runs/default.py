"""Where runs are kept by default; a file of its own, because every `llm-wizard --help` needs it and nothing else of a run."""

from __future__ import annotations

import os
from pathlib import Path


def default_runs_dir() -> Path:
    """LLM_WIZARD_RUNS_DIR, else `runs` in the working directory; --runs-dir goes before both."""
    return Path(os.environ.get("LLM_WIZARD_RUNS_DIR", "runs"))
