"""The two READMEs say the same."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def parts(name: str) -> tuple[list[int], list[str], set[str]]:
    """Levels of the headings, lines of the code blocks without comments, and links to files."""
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = [len(marks) for marks in re.findall(r"^(#+) ", prose, re.MULTILINE)]
    code = [re.sub(r"\s+# .*", "", line) for block in blocks for line in block.splitlines()]
    links = set(re.findall(r"\]\((?!https?:)([^)#]+)", prose))
    return headings, code, links


def test_both_readmes_have_the_same_headings_commands_and_links() -> None:
    english, japanese = parts("README.md"), parts("README.ja.md")
    assert japanese[0] == english[0]
    assert japanese[1] == english[1], "the commands, without their comments"
    assert japanese[2] - {"README.md"} == english[2] - {"README.ja.md"}


def test_each_readme_leads_to_the_other() -> None:
    assert "(README.ja.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "(README.md)" in (ROOT / "README.ja.md").read_text(encoding="utf-8")
