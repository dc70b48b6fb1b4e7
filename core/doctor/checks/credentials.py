"""Checks of log-ins, without ever looking at a secret, and of the scheduler's allocation."""

from __future__ import annotations

from datetime import datetime

from core.doctor.check import Check, Values
from core.doctor.finding import Verdict
from core.doctor.fix import Command, Fix, advice
from core.doctor.needs import Needs
from core.language import tr, tr_later
from core.quantities import duration

SHORT_S = 3600


def creds(value: Values, needs: Needs) -> Verdict:
    """A missing log-in stops a run where it wants to upload or log, hours after its start; only stages that need one can fail."""
    missing: list[tuple[str, str, tuple[str, ...]]] = []
    if needs.hub and not value["hub"]:
        missing.append((tr("Hugging Face Hub"), "hf auth login", needs.uploads))
    if needs.wandb and not value["wandb"] and value["wandb_mode"] not in ("offline", "disabled"):
        missing.append(("Weights & Biases", f"{needs.python} -m wandb login", needs.training))
    if missing:
        return Verdict(
            "fail",
            tr("not logged in: {services}", services=", ".join(name for name, _, _ in missing)),
            expected=tr("a log-in for what the plan uploads to"),
            found=tr("neither a variable nor a file with a token"),
            why=tr("the stage that needs it would end there"),
            fix=advice("creds", *(command for _, command, _ in missing)),
            stages=tuple(stage for _, _, stages in missing for stage in stages),
        )
    if needs.hub and value["hub_offline"]:
        return Verdict(
            "fail",
            tr("HF_HUB_OFFLINE is set, and the plan uploads"),
            expected=tr("HF_HUB_OFFLINE unset"),
            found="HF_HUB_OFFLINE",
            why=tr("the upload is refused by the library itself"),
            fix=advice("creds", "unset HF_HUB_OFFLINE"),
            stages=needs.uploads,
        )
    if files := [str(path) for path in value["readable_by_others"]]:
        return Verdict(
            "warn",
            tr("others can read {files}", files=", ".join(files)),
            expected=tr("only for you (mode 600)"),
            found=tr("readable for others"),
            why=tr("it holds a token: whoever reads it can act as you"),
            fix=Fix("creds", "safe", (Command(("chmod", "600", *files)),)),
        )
    if not needs.hub and not needs.wandb:
        return Verdict("skip", tr("no stage of this plan needs a log-in"))
    return Verdict("pass", tr("logged in where the plan needs it"))


def hub_account(value: Values, needs: Needs) -> Verdict:
    """A token that is wrong, expired or may only read is refused at the upload, after days of training."""
    if not needs.hub:
        return Verdict("skip", tr("no stage of this plan uploads to the Hub"))
    host, status = str(value["host"]), value["status"]
    if value.get("error"):
        return Verdict(
            "fail",
            tr("{host} cannot be reached from here", host=host),
            expected=tr("outbound HTTPS"),
            found=str(value["error"]),
            why=tr("the uploads start on this machine"),
            fix=advice("creds.hub", f"curl -I https://{host}", "export HTTPS_PROXY=..."),
            stages=needs.uploads,
        )
    if status is None:
        return Verdict("skip", tr("there is no token to ask with"))
    login = advice("creds.hub", "hf auth login")
    if int(status) in (401, 403):
        return Verdict(
            "fail",
            tr("{host} refuses the token", host=host),
            expected=tr("a token that is valid"),
            found=f"HTTP {status}",
            why=tr("it is wrong, expired or was revoked"),
            fix=login,
            stages=needs.uploads,
        )
    if int(status) != 200:
        raise ValueError(f"HTTP {status}")
    if value["role"] == "read":
        return Verdict(
            "fail",
            tr("the token of {name} may only read", name=value["name"]),
            expected=tr("a token with the right to write"),
            found="read",
            why=tr("the upload would be refused"),
            fix=login,
            stages=needs.uploads,
        )
    role = str(value["role"] or tr("not told"))
    return Verdict(
        "pass", tr("{host} knows the token as {name}, role {role}", host=host, name=value["name"], role=role)
    )


def slurm(value: Values, needs: Needs) -> Verdict:
    """A job that ends before the run, or a hostfile with nodes outside of it, ends the run without a word of its own."""
    if not value["job"]:
        if needs.launcher == "slurm":
            return Verdict(
                "warn",
                tr("not inside a Slurm job"),
                expected=tr("an allocation, or --submit"),
                found=tr("no SLURM_JOB_ID"),
                why=tr("the plan's launcher is slurm"),
                fix=advice("slurm", "salloc --nodes=2 --gpus-per-node=8", "llm-wizard run ... --submit"),
                stages=needs.training,
            )
        return Verdict("skip", tr("not inside a Slurm job"))
    outside = [node for node in needs.nodes if value["nodes"] and node not in value["nodes"]]
    if outside:
        return Verdict(
            "fail",
            tr("{nodes} are not part of job {job}", nodes=", ".join(outside), job=value["job"]),
            expected=", ".join(value["nodes"]),
            found=", ".join(needs.nodes),
            why=tr("Slurm refuses to start ranks there, or they are another job's GPUs"),
            fix=advice("slurm", "scontrol show hostnames $SLURM_JOB_NODELIST > hostfile"),
            stages=needs.training,
        )
    if value.get("ends") and value["ends"] not in ("Unknown", "NONE"):
        left = (datetime.fromisoformat(value["ends"]) - datetime.fromisoformat(value["now"])).total_seconds()
        if left < SHORT_S:
            return Verdict(
                "warn",
                tr("job {job} ends in {time}", job=value["job"], time=duration(max(0, left))),
                expected=tr("more time than the run takes"),
                found=str(value["ends"]),
                why=tr("the run is stopped there, after it has saved"),
                fix=advice("slurm", f"scontrol update JobId={value['job']} TimeLimit=+4:00:00"),
                stages=needs.training,
            )
    if value.get("terminal"):
        return Verdict(
            "warn",
            tr("inside `srun --pty` of job {job}", job=value["job"]),
            expected=tr("a job that does not end with this shell"),
            found="SLURM_PTY_PORT",
            why=tr("Slurm ends every process of the job when this shell ends, the run among them"),
            fix=advice("slurm", "salloc ...", "llm-wizard run ... --submit"),
            stages=needs.training,
        )
    return Verdict("pass", tr("job {job} on {count} nodes", job=value["job"], count=len(value["nodes"])))


CHECKS: tuple[Check, ...] = (
    Check("creds", tr_later("log-ins"), "credentials", creds, scope="head", fix="creds", stages="uploading"),
    Check(
        "creds.hub",
        tr_later("the Hub account"),
        "credentials",
        hub_account,
        scope="head",
        tier="full",
        stages="uploading",
    ),
    Check("slurm", tr_later("the Slurm job"), "credentials", slurm, scope="head", stages="training"),
)
