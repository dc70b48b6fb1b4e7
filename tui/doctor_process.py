"""The doctor as a process beside the screen: its records come as messages."""

from __future__ import annotations

from pathlib import Path

import orjson
from textual.message_pump import MessagePump

from core.language import tr
from core.text.plain import plain
from tui.messages import DoctorEnded, DoctorSaid
from tui.verb import Verb


async def examine(pump: MessagePump, run: int, runs_dir: Path, *arguments: str) -> None:
    """Post what `llm-wizard doctor --stream ARGUMENTS` says, line by line, and DoctorEnded at its end.

    `run` is put into each message. Cancelling this ends the process.
    """
    reported, trouble = False, ""
    try:
        async with Verb(runs_dir, "doctor", "--stream", *arguments) as verb:
            async for line in verb.lines():
                try:
                    record = orjson.loads(line)
                except orjson.JSONDecodeError:
                    verb.heard(line)
                    continue
                reported = reported or (isinstance(record, dict) and record.get("kind") == "report")
                pump.post_message(DoctorSaid(run, record))
        if not reported:
            words = verb.last_words or tr("it said nothing")
            trouble = tr("The doctor ended early (exit code {code}): {words}", code=verb.exit_code, words=words)
    except OSError as error:
        trouble = tr("The doctor could not be started: {reason}", reason=plain(str(error)))
    pump.post_message(DoctorEnded(run, trouble))
