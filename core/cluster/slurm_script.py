"""The batch script of a submitted run: the supervisor works on the job's first node, saves before the time is up and queues again."""

from __future__ import annotations

import shlex

from core.cluster.slurm_section import SlurmSection
from core.runs.directory import RunDirectory

REQUEUE = 75
"""The supervisor's exit code for "saved, not done, queue me again" (EX_TEMPFAIL of sysexits.h); only the script below sees it."""
IN_JOB = "LLM_WIZARD_JOB"
"""The variable by which the supervisor knows that this script started it."""
ENDING_S = 30
"""Kept of the seconds before the time limit, to end what did not stop by itself and to ask for the requeue."""

_BODY = """\
# Written by llm-wizard. Slurm runs this on the first node of the job.
export {in_job}=1 PYTHONPATH={code} PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
export LLM_WIZARD_STOP_GRACE="${{LLM_WIZARD_STOP_GRACE:-{grace}}}"
cd {root} || exit 2

supervisor=
pass_on() {{ [ -z "$supervisor" ] || kill -s "$1" "$supervisor" 2>/dev/null; }}
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM INT
trap '' HUP

# USR1 is ignored until the supervisor minds it: by default it would end it.
(trap '' USR1; exec {python} {entry} {root}) &
supervisor=$!
# A trapped signal ends `wait`, not the supervisor; the last one gives its own exit code.
while wait "$supervisor"; kill -0 "$supervisor" 2>/dev/null; do :; done
wait "$supervisor"
code=$?

if [ "$code" -eq {requeue} ]; then
    scontrol requeue "$SLURM_JOB_ID" || echo "error: Slurm did not take job $SLURM_JOB_ID back into the queue"
fi
exit "$code"
"""


def job_script(run: RunDirectory, section: SlurmSection, python: str) -> str:
    """The whole script. `python` is the Python of llm-wizard itself, at the same path on every node.

    No path stands in an #SBATCH line, where % and quotes have meanings of their own: it is submitted from the run directory.
    """
    root = shlex.quote(str(run.root))
    body = _BODY.format(
        in_job=IN_JOB,
        code=shlex.quote(str(run.code)),
        grace=max(ENDING_S, section.signal_before - ENDING_S),
        root=root,
        python=shlex.quote(python),
        entry=shlex.quote(str(run.code / "supervise.py")),
        requeue=REQUEUE,
    )
    return "\n".join(["#!/bin/bash", *directives(run, section), body])


def directives(run: RunDirectory, section: SlurmSection) -> list[str]:
    """The #SBATCH lines."""
    options: list[tuple[str, str | None]] = [
        ("job-name", f"llm-wizard-{run.name}"),
        ("output", run.supervisor_log.name),
        ("open-mode", "append"),
        ("requeue", None),
        ("signal", f"B:USR1@{section.signal_before}"),
        ("ntasks-per-node", "1"),
        *section.options(),
    ]
    return [f"#SBATCH --{name}" if value is None else f"#SBATCH --{name}={_quoted(value)}" for name, value in options]


def _quoted(value: str) -> str:
    """`value` for an #SBATCH line: quotes as in a shell, but a backslash counts inside single quotes too (measured, 22.05)."""
    return shlex.quote(value.replace("\\", "\\\\"))
