"""The original pipeline's own launcher: `deepspeed --hostfile`, which starts the ranks of all nodes through pdsh.

What it does is left to it; what it cannot be trusted with is not (read in deepspeed 0.19.8, launcher/runner.py and
multinode_runner.py):
- It ends a run by `pkill -f` on a command line that every DeepSpeed run of the user has. It does so on SIGINT and SIGTERM, so both
  are blocked in it from its start. A guard on each node, the starter of our other launchers with nothing to start, sees the ranks
  come and go, and ends those of this run and no others.
- It puts the working folder, the script, its arguments and all variables on a remote command line that a shell parses, hardly
  quoted. What a shell would take apart is refused here, and secrets are left out.
- It reads `.deepspeed_env` of the home and of the working folder. DS_ENV_FILE names ours instead, in the run directory.
- It exits with 0 when pdsh was killed. The stage's own result decides, as always.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from core.cluster.contact import Limits
from core.cluster.nodes_process import NodesProcess, NodeStart
from core.cluster.reach import STREAM_OPTIONS, Reach
from core.cluster.survey import NodeFacts, interface_variables
from core.cluster.sweep import sweep
from core.doctor.home import user_home
from core.doctor.host_keys import own_configuration
from core.errors import InputError, StageError
from core.exit_codes import ExitCode
from core.files import write_atomically
from core.runs.directory import RunDirectory
from core.runs.masking import secret_names
from core.runs.process import MARK, StageProcess, Trouble, kill_run_processes
from core.stages.command import BYTES, HOST, MASTER_ADDR, MASTER_PORT, STARTED, fill_in

UNQUOTED = re.compile(r"[\w@+=:,./][\w@+=:,./-]*")
"""A word that every shell takes as it is, and in which pdsh, which fills in %h and %n, finds nothing."""
NOT_IN_QUOTES = re.compile(r'["$`\\%]|[\x00-\x1f\x7f-\x9f\u2028\u2029]|^\s|\s$')
"""What a value in double quotes does not survive: the shell's, pdsh's, the line's end, and the edges that deepspeed strips."""
OF_THE_HEAD = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "SSH_AUTH_SOCK", "KRB5CCNAME",
)  # fmt: skip
"""What the launcher itself gets on this machine. Of more it would make exports: MLFLOW_TRACKING_TOKEN is one."""
NAMING_S = 2.5
"""After the launcher's end, here or on a node, for the guards to name what caused it."""
PDSH_SAYS = re.compile(rb"^pdsh@[^\s:]+: (?P<node>[^\s:]+): ssh exited with exit code (?P<code>\d+)$")
"""What pdsh prints of a node whose part has failed, before it goes on to wait for the others, which wait for that node. What a rank
prints begins with its node's name instead."""
ENDED_BY_SIGTERM = (ExitCode.INTERRUPTED, -signal.SIGTERM)
GUARD = ("-I", "-S", "-c", "import signal; signal.pause()")
"""What a starter starts on each node: nothing; the ranks come from elsewhere, and carry the same mark."""


def deepspeed_argv(run: RunDirectory, stage_id: str, python: str, script: Sequence[str] = ()) -> list[str]:
    """The launcher's command, with the places where the ranks meet to fill in.

    `script` is what every rank runs, with its arguments; the stage's own where there is none. Every node has LOCAL_RANK in its
    environment, so --local_rank is not passed to the script as well. --force_multi: a hostfile with one node in it would otherwise
    start everything on this machine.

    Raises:
        InputError: a path or an argument that a remote shell would take apart.
    """
    program, *arguments = script or [str(run.code / "stage.py"), stage_id, str(run.root)]
    # The launcher puts double quotes around an argument with a space in it, and only then.
    bare_words = [word for word in arguments if " " not in word or NOT_IN_QUOTES.search(word)]
    for word in (python, str(run.root), program, *bare_words):
        # An option's dashes are the script's own business.
        bare = word.lstrip("-") if word in arguments else word
        if not UNQUOTED.fullmatch(bare.replace(STARTED, "_").replace(HOST, "_").replace(BYTES, "_")):
            raise InputError(
                f"{word!r} has characters that deepspeed's launcher passes to a shell on every node",
                "choose paths and values of letters, digits and @ + = : , . / _ -, or another cluster.launcher (ssh quotes "
                "everything)",
            )
    options = ["--hostfile", str(_hostfile(run, stage_id)), "--launcher", "pdsh", "--force_multi", "--no_ssh_check"]
    meeting = [f"--master_addr={MASTER_ADDR}", f"--master_port={MASTER_PORT}", "--no_local_rank"]
    return [python, "-m", "deepspeed.launcher.runner", *options, *meeting, program, *arguments]


def _hostfile(run: RunDirectory, stage_id: str) -> Path:
    return run.stage(stage_id) / "hostfile"


def _environment_file(run: RunDirectory, stage_id: str) -> Path:
    return run.stage(stage_id) / ".deepspeed_env"


def environment_lines(environment: Mapping[str, str]) -> list[str]:
    """The lines of .deepspeed_env: what each rank is to have in its environment.

    Raises:
        StageError: a value that would not arrive as it is.
    """
    lines = []
    for name, value in environment.items():
        if NOT_IN_QUOTES.search(value):
            raise StageError(
                f"deepspeed's launcher cannot pass {name}={value!r} to the nodes: a shell there would read more than a value",
                f"unset {name}, change it where it is set (cluster.env), or take another cluster.launcher: ssh passes any value",
            )
        lines.append(f"{name}={value}")
    return lines


def launcher_environment(environ: Mapping[str, str], stage_env: Mapping[str, str], env_file: Path) -> dict[str, str]:
    """The launcher's own environment on this machine: little, and pdsh's ssh asks no question and takes no unknown key.

    Raises:
        InputError: our ssh configuration lies where pdsh, which splits its options at spaces, cannot be pointed to.
    """
    configuration = own_configuration()
    for word in configuration:
        if not re.fullmatch(r"[^\s%]+", word):
            raise InputError(
                f"pdsh cannot be given the ssh configuration {word!r}",
                "set LLM_WIZARD_HOME to a folder without spaces or %",
            )
    options = [f"-o{name}={value}" for name, value in STREAM_OPTIONS.items()]
    own = {name: environ[name] for name in OF_THE_HEAD if name in environ}
    own |= {name: stage_env[name] for name in ("DS_ACCELERATOR",) if name in stage_env}
    return own | {
        "PDSH_RCMD_TYPE": "ssh",
        "PDSH_SSH_ARGS_APPEND": " ".join([*configuration, *options]),
        "DS_ENV_FILE": str(env_file),
        "PYTHONUNBUFFERED": "1",
    }


class _Log(FileIO):
    """The stage's log, which keeps what pdsh says of nodes that failed: the first of them, with its exit code."""

    def __init__(self, log: FileIO) -> None:
        super().__init__(os.dup(log.fileno()), "ab")
        self.failed: tuple[str, int] | None = None
        self._line = b""

    def write(self, data: Any) -> int:
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            if self.failed is None and (match := PDSH_SAYS.match(line)):
                self.failed = match["node"].decode(), int(match["code"])
        self._line = self._line[-300:]
        return super().write(data) or 0


class DeepSpeedProcess:
    """One stage under deepspeed's launcher; the same interface as `core.runs.process.StageProcess`.

    The launcher starts once every node's guard is there, so that no rank ever runs unwatched. Events: as NodesProcess.
    """

    def __init__(
        self,
        reach: Reach,
        nodes: Sequence[str],
        argv: Sequence[str],
        environment: Mapping[str, str],
        cwd: str,
        mark: str,
        grace: float,
        log: FileIO,
        event: Callable[..., None],
        *,
        python: str,
        limits: Limits | None = None,
    ) -> None:
        self.troubles: Sequence[Trouble] = ()
        self._reach, self._nodes, self._python = reach, nodes, python
        self._argv, self._environment, self._cwd, self._mark = list(argv), environment, cwd, mark
        self._event, self._log = event, _Log(log)
        self._grace = min(grace, (limits or Limits()).fail_grace)
        starts = [NodeStart(node, [python, *GUARD], {}) for node in nodes]
        self._guards = NodesProcess(reach, starts, "/", mark, grace, log, event, python=python, limits=limits)
        self._launcher: StageProcess | None = None
        self._code: int | None = None
        """How the launcher ended."""
        self._stop_asked = False
        self._failing_since: float | None = None
        self._unseen: Trouble | None = None
        """A failure of which the guards did not see the cause."""
        self._kill_at: float | None = None

    @classmethod
    def start(
        cls,
        stage: Mapping[str, Any],
        environment: Mapping[str, str],
        run: RunDirectory,
        facts: Mapping[str, NodeFacts],
        nodes: Sequence[str],
        reach: Reach,
        grace: float,
        log: FileIO,
        event: Callable[..., None],
        *,
        python: str,
        limits: Limits | None = None,
    ) -> DeepSpeedProcess:
        """Write the hostfile and .deepspeed_env of this start, and send the guards out. `environment` is what the ranks get.

        Raises:
            InputError: a path that a remote shell would take apart, or no pdsh here.
            StageError: a value that could not be passed.
        """
        if shutil.which("pdsh") is None:
            raise InputError(
                "cluster.launcher is deepspeed, which needs pdsh on this machine",
                "install pdsh (as root: apt-get install pdsh), or set cluster.launcher to ssh",
            )
        where = os.path.realpath(stage["cwd"])  # what the launcher makes of its working folder
        if not UNQUOTED.fullmatch(where):
            raise InputError(
                f"{where!r} has characters that deepspeed's launcher passes to a shell on every node",
                "keep runs in another folder (--runs-dir), or set cluster.launcher to ssh",
            )
        mark = str(run.root)
        passed = rank_environment(environment, [facts[node].interface for node in nodes], event)
        lines = environment_lines({**passed, MARK: mark})
        env_file, slots = _environment_file(run, stage["id"]), int(stage["derived"]["processes_on_node"])
        write_atomically(env_file, "".join(f"{line}\n" for line in lines).encode())
        write_atomically(_hostfile(run, stage["id"]), "".join(f"{node} slots={slots}\n" for node in nodes).encode())
        first = facts[nodes[0]]
        argv = fill_in(stage["argv"], 0, first.address, first.port)
        own = launcher_environment(os.environ, stage["env"], env_file)
        return cls(reach, nodes, argv, own, stage["cwd"], mark, grace, log, event, python=python, limits=limits)

    @property
    def last_contact(self) -> dict[str, float]:
        """When each node was last heard (monotonic)."""
        return self._guards.last_contact

    @property
    def pid(self) -> int | None:
        """The launcher, on this machine."""
        return self._launcher.pid if self._launcher else None

    def pump(self, timeout: float) -> int | None:
        """Move output into the log for up to `timeout` seconds; the exit code once nothing is left on any node.

        0 when every rank ended with 0; else that of the rank that failed first, or FAILED.
        """
        if self._launcher is None:
            over = self._guards.pump(timeout)
            self.troubles = self._guards.troubles
            if over is not None:
                self._log.close()
                return over or ExitCode.FAILED
            if not self._stop_asked and len(self._guards.last_contact) == len(self._nodes):
                self._launch()
            return None
        over = self._guards.pump(timeout if self._code is not None else 0)
        if self._code is None:
            self._code = self._launcher.pump(timeout if over is None else 0)
        self.troubles = self._guards.troubles or ([self._unseen] if self._unseen else [])
        if over is None:
            self._look_at_ends(time.monotonic())
            return None
        return self._close(over)

    def terminate(self) -> None:
        """Ask every rank to save and stop. The launcher ends after them: it must not be asked."""
        self._stop_asked = True
        self._guards.terminate()

    def ask_for_stacks(self) -> None:
        """Let every rank write what it is doing."""
        self._guards.ask_for_stacks()

    def kill_all(self) -> None:
        """End the launcher and every process of the run on every node; `pump` waits for the proof."""
        self._stop_asked = True
        kill_run_processes(Path(self._mark))
        self._guards.kill_all()

    def _launch(self) -> None:
        # A signal that is blocked stays so in what is started, whatever handlers that sets: see the top of this file. The end of
        # the supervisor, too, reaches its children as a SIGTERM.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self._launcher = StageProcess(self._argv, self._environment, self._cwd, Path(self._mark), self._log)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _look_at_ends(self, now: float) -> None:
        """End what is left where the launcher has ended, and where pdsh waits for nodes that wait for one that failed."""
        if self._kill_at is None:
            if self._code is not None and (self._code == 0 or self._stop_asked or self.troubles):
                self._kill_at = now
            elif failed := self._failed():
                self._failing_since = self._failing_since or now
                # A guard sees more than pdsh, but not a rank that ended before it was seen at all.
                if now - self._failing_since > NAMING_S and not self._stop_asked and not self.troubles:
                    self._unseen = failed
                    self._event("trouble", trouble=failed.kind, node=failed.node, rank=None, text=failed.text)
                    self._guards.terminate()
                    self._kill_at = now + self._grace
        elif now >= self._kill_at:
            self._guards.kill_all()

    def _failed(self) -> Trouble | None:
        """What is known of a failure without the guards."""
        if self._log.failed:
            node, code = self._log.failed
            return Trouble("launcher", node, f"the launcher on {node} ended with exit code {code}")
        if self._code:
            return Trouble("launcher", "", f"deepspeed's launcher ended with exit code {self._code}")
        return None

    def _close(self, over: int) -> int:
        """The guards have ended: after the launcher, or before it because something failed."""
        assert self._launcher is not None
        kill_run_processes(Path(self._mark))
        while self._launcher.pump(0.1) is None:
            pass
        self._log.close()
        if self._code == 0:
            return ExitCode.DONE
        # A login that was slow may have started ranks after its guard had gone.
        reachable = [node for node, proof in self._guards.proof.items() if proof is not None]
        sweep(self._reach, reachable, self._mark, 0, python=self._python)
        if self._log.failed and not self._stop_asked and over in ENDED_BY_SIGTERM:
            # The guard saw only the ranks that the launcher there ended because of another.
            self.troubles = [failed] if (failed := self._failed()) else []
            return self._log.failed[1]
        # pdsh says 255 of a node whose ssh was ended; the guards know how the first rank did.
        return (over if self.troubles or self._code is None else self._code) or ExitCode.FAILED


def rank_environment(
    environment: Mapping[str, str], interfaces: Sequence[str], event: Callable[..., None]
) -> dict[str, str]:
    """What .deepspeed_env may hold of what the ranks are to get; what is left out is said. The same holds for all nodes."""
    secrets = secret_names(environment)
    passed = {name: value for name, value in environment.items() if name not in secrets}
    if secrets:
        text = (
            f"deepspeed's launcher writes what it passes into command lines, so {', '.join(secrets)} is not passed: "
            "log in on the nodes (`wandb login`, `hf auth login`), or set cluster.launcher to ssh"
        )
        event("warning", text=text)
    if (user_home() / ".deepspeed_env").is_file():
        event("warning", text="~/.deepspeed_env is not used: what the ranks are to get stands in cluster.env")
    if len(set(interfaces)) == 1:
        passed = interface_variables(interfaces[0]) | passed
    elif any(interfaces):
        named = ", ".join(sorted(set(interfaces)))
        event(
            "warning",
            text=f"the nodes' interfaces differ ({named}); NCCL and Gloo choose by themselves under deepspeed",
        )
    return passed
