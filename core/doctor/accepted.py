"""Findings that someone has accepted: kept with who, why and until when, and shown as skipped until then."""

from __future__ import annotations

import datetime
import getpass
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from core.doctor.finding import Finding, Verdict
from core.errors import InputError
from core.files import read_json, write_json
from core.language import tr


@dataclass(frozen=True)
class Acceptance:
    """`until` is the last day, as YYYY-MM-DD."""

    id: str
    who: str
    why: str
    until: str


def accept(path: Path, check_id: str, why: str, until: str) -> Acceptance:
    """Record it, in place of an earlier one for the same check. Raises InputError for a date that is none, or is past."""
    try:
        day = datetime.date.fromisoformat(until)
    except ValueError:
        raise InputError(f"--until {until}: expected a date such as 2027-01-31") from None
    if day < datetime.date.today():
        raise InputError(f"--until {until} is past")
    acceptance = Acceptance(check_id, getpass.getuser(), why, until)
    others = [other for other in accepted(path) if other.id != check_id]
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_json(path, {"schema_version": 1, "accepted": [asdict(one) for one in (*others, acceptance)]})
    return acceptance


def accepted(path: Path) -> list[Acceptance]:
    """What is recorded; nothing where there is no file. Raises InputError for a file that cannot be read."""
    try:
        return [Acceptance(**entry) for entry in read_json(path)["accepted"]]
    except FileNotFoundError:
        return []
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read: {error}", "mend it, or move it aside") from None


def demoted(finding: Finding, acceptances: list[Acceptance], today: datetime.date) -> Finding:
    """A warning or failure that is accepted today, as a skip that says so; any other finding as it is."""
    if finding.status not in ("warn", "fail", "unknown"):
        return finding
    for one in acceptances:
        if one.id == finding.id and today <= datetime.date.fromisoformat(one.until):
            summary = tr(
                "accepted by {who} until {until} ({why}): {summary}",
                who=one.who,
                until=one.until,
                why=one.why,
                summary=finding.summary,
            )
            return Finding(finding.id, finding.node, finding.group, Verdict("skip", summary))
    return finding
