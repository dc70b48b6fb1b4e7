"""The documentation says what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent


def test_the_page_of_preset_keys_is_what_the_code_says() -> None:
    script = REPOSITORY / "scripts" / "preset_reference.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_readmes_relative_links_lead_somewhere() -> None:
    import re

    for page in (REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
