"""Findings that someone has accepted: kept with who, why and until when, and shown as skipped until then."""

from __future__ import annotations

import datetime
import getpass
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from core.doctor.finding import Finding, Verdict
from core.doctor.home import ELSEWHERE
from core.errors import InputError, StageError
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
    """Record it, in place of an earlier one for the same check. Raises InputError for a date that is none, or is past; StageError where
    it cannot be written.
    """
    try:
        day = datetime.date.fromisoformat(until)
    except ValueError:
        raise InputError(f"--until {until}: expected a date such as 2027-01-31") from None
    if day < datetime.date.today():
        raise InputError(f"--until {until} is past")
    acceptance = Acceptance(check_id, user_name(), why, until)
    others = [other for other in accepted(path) if other.id != check_id]
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(path, {"schema_version": 1, "accepted": [asdict(one) for one in (*others, acceptance)]})
    except OSError as error:
        raise StageError(f"{path} cannot be written: {error}", ELSEWHERE) from None
    return acceptance


def user_name() -> str:
    """The user's name; the number where it has none, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def accepted(path: Path) -> list[Acceptance]:
    """What is recorded; nothing where there is no file, or none that this user may read. Raises InputError for a damaged one."""
    try:
        return [Acceptance(**entry) for entry in read_json(path)["accepted"]]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read: {error}", "mend it, or move it aside") from None


def demoted(finding: Finding, acceptances: list[Acceptance], today: datetime.date) -> Finding:
    """A warning or failure that is accepted today, as a skip that says so; any other finding as it is."""
    if not finding.is_problem:
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
