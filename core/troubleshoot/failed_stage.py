"""The verdict on a stage that just failed, asked for by the supervisor.

It runs as a process of its own with a time limit: whatever a log may hold, the supervisor goes on.

    python -m core.troubleshoot.failed_stage LOG START EXIT_CODE      (prints one JSON object)
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson

TIME_LIMIT_S = 10.0
CODE = Path(__file__).parent.parent.parent
"""The folder that holds this package: the run's own copy of it."""


def verdict_of(log: Path, start: int, exit_code: int) -> dict[str, Any] | None:
    """{"id", "cause", "fix", "line", "text"} for what stands in `log` from byte `start` on; None where none could be had.

    `id` is a signature's, or "unknown"; `line` counts from 1 over the whole file. Never raises, never takes longer than
    TIME_LIMIT_S.
    """
    try:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "core.troubleshoot.failed_stage",
                str(log),
                str(start),
                str(exit_code),
            ],
            cwd=CODE,
            env={**os.environ, "PYTHONPATH": str(CODE)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=TIME_LIMIT_S,
            check=False,
        )
        document = orjson.loads(done.stdout)
        return document if isinstance(document, dict) else None
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def main() -> None:
    """Print the verdict that `verdict_of` reads; null for a log without a failure."""
    from core.troubleshoot.diagnose import diagnose_part

    log, start, exit_code = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    first_line, diagnosis = diagnose_part(log, start, exit_code)
    document: dict[str, Any] | None = None
    if diagnosis.failed:
        found = diagnosis.findings[0] if diagnosis.findings and diagnosis.verdict != "unknown" else None
        line = found.line if found else diagnosis.excerpt_line
        document = {
            "id": diagnosis.verdict,
            "cause": found.signature.cause if found else "",
            "fix": found.signature.fix if found else "",
            "line": line + first_line if line is not None else None,
            "text": found.text if found else next(iter(diagnosis.excerpt[-1:]), ""),
        }
    sys.stdout.buffer.write(orjson.dumps(document))


if __name__ == "__main__":
    main()
