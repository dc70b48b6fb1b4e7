"""Write docs/preset.md: every key of a preset with its type, default and sentence of help.

python scripts/preset_reference.py            # rewrite the page
python scripts/preset_reference.py --check    # exit 1 when the page is not what the code says
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from pydantic.fields import FieldInfo

from core.preset import Preset
from core.section import Section

PAGE = Path(__file__).parent.parent / "docs" / "preset.md"


def page() -> str:
    lines = ["# Every key of a preset", "", "Made by `scripts/preset_reference.py` from the code.", ""]
    lines += ["| key | default | |", "|---|---|---|"]
    sections = []
    for name, field in Preset.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            sections.append((name, annotation))
        else:
            lines.append(row(name, field))
    for name, section in sections:
        summary = (section.__doc__ or "").strip().splitlines()[0]
        lines += ["", f"## {name}", "", summary, "", "| key | default | |", "|---|---|---|"]
        lines += [row(f"{name}.{key}", field) for key, field in section.model_fields.items()]
    return "\n".join(lines) + "\n"


def row(key: str, field: FieldInfo) -> str:
    default = "" if field.default is None else json.dumps(field.default, ensure_ascii=False)
    text = re.sub(r"\s+", " ", field.description or "").replace("|", "\\|")
    return f"| `{key}` | {f'`{default}`' if default else 'empty'} | {text} |"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(
            0 if PAGE.read_text(encoding="utf-8") == page() else f"{PAGE} is old: python scripts/preset_reference.py"
        )
    PAGE.write_text(page(), encoding="utf-8")
