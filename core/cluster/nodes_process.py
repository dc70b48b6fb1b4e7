"""A stage's processes on its nodes: started through a starter on each, heard, told apart when one fails, ended without leftovers.

The same interface as `core.runs.process.StageProcess`. Whoever pumps it gets an exit code only when every node has either proved
that no process of the run is left on it, or is given up: of that one `proof` says None, and nothing can be alive on it by itself
SAFE_AGAIN_S after `last_contact`.
"""

from __future__ import annotations

import contextlib
import re
import selectors
import threading
import time
from collections.abc import Callable, Sequence
from io import FileIO

from core.cluster.contact import SAFE_AGAIN_S, Contact, Limits, Message
from core.cluster.node_stream import NodeStart, NodeStream
from core.cluster.reach import Reach, checked_node
from core.cluster.sweep import AT_ONCE, sweep
from core.cluster.trouble import Sign, Silent, how, how_work_ended, judge, look_at
from core.exit_codes import ExitCode
from core.runs.process import Trouble
from core.text.plain import plain

__all__ = ["SAFE_AGAIN_S", "NodeStart", "NodesProcess", "sweep"]

PASSED = ("HOME", "USER", "LOGNAME", "SHELL", "LANG", "TMPDIR", "XDG_RUNTIME_DIR", "CUDA_VISIBLE_DEVICES")
"""What the ranks get of their own node's login: the GPUs that the survey counted there are those it leaves visible. All else is
set by the head: no node differs by its user's profile."""
PASSED_BY_SLURM = (*PASSED, "SLURM_JOB_ID")
LINGER_S = 1.0
"""After a node's last word: for what is left of its output, and for ssh to end."""
_ADDRESS = re.compile(r"[0-9A-Fa-f:.]+")


class NodesProcess:
    """One stage on several nodes, in the order of their ranks. `pump` it until it returns an exit code.

    `python` is the training Python, at this path on every node; `mark` the run directory that all processes carry; `grace`
    seconds at most between SIGTERM and SIGKILL when the stage has failed. Events: "trouble" (trouble, node, rank, text, after:
    seconds since the node was last heard), "link-back" (node), "warning" (text).

    Raises:
        InputError: a name that is none of a host.
    """

    def __init__(
        self,
        reach: Reach,
        nodes: Sequence[NodeStart],
        cwd: str,
        mark: str,
        grace: float,
        log: FileIO,
        event: Callable[..., None],
        *,
        python: str,
        limits: Limits | None = None,
    ) -> None:
        for start in nodes:
            checked_node(start.node)
        self.troubles: list[Trouble] = []
        self._reach = reach
        self._limits = limits or Limits()
        self._cwd, self._mark, self._python = cwd, mark, python
        self._grace = min(grace, self._limits.fail_grace)
        self._event = event
        self._signs: list[Sign] = []
        self._maybe: list[Sign] = []
        """Ranks that have ended nobody knows how: trouble only if their launcher says so."""
        self._stop_asked = False
        self._failed: Sign | None = None
        self._kill_at: float | None = None
        self._kill_said = False
        self._result: int | None = None
        self._contact = Contact()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._contact.news_descriptor, selectors.EVENT_READ, lambda: None)
        self._nodes = {start.node: NodeStream(start, log, self._selector, self._contact) for start in nodes}
        self._open_more()

    # --- What the supervisor calls

    @property
    def pid(self) -> int | None:
        """The launcher, where it runs on this machine."""
        return (
            next((node.pid for node in self._nodes.values() if node.pid), None) if self._reach.kind == "local" else None
        )

    @property
    def proof(self) -> dict[str, int | None]:
        """How many processes were left on each node when its part had ended, and were killed; None: not known."""
        return {node.name: node.proof for node in self._nodes.values()}

    @property
    def last_contact(self) -> dict[str, float]:
        """When each node was last heard (monotonic); a node that was never heard, where nothing was started, is missing."""
        return dict(self._contact.last)

    def pump(self, timeout: float) -> int | None:
        """Move output into the log and react to what nodes say for up to `timeout` seconds; the exit code once all is over.

        0 when every launcher ended with 0; else the code of the rank or launcher that failed first (-signal where it was
        killed), or FAILED for a node that is gone.
        """
        if self._result is not None:
            return self._result
        self._open_more()
        for key, _ in self._selector.select(timeout):
            key.data()
        for message in self._contact.news():
            self._hear(message)
        now = time.monotonic()
        for node in self._nodes.values():
            self._check(node, now)
        self._settle(now)
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = None
            self._say_to_all("kill")
        if all(node.over for node in self._nodes.values()):
            self._result = self._exit_code()
            self._contact.close()
            self._selector.close()
        return self._result

    def terminate(self) -> None:
        """Ask every rank to save and stop."""
        self._stop_asked = True
        self._say_to_all("term")

    def ask_for_stacks(self) -> None:
        """Let every rank write what it is doing."""
        for node in self._nodes.values():
            if node.started:
                self._contact.say(node.name, "stacks")

    def kill_all(self) -> None:
        """Have every process of the run ended on every node; `pump` waits for the proof."""
        if self._result is None and not self._kill_said:
            self._stop_asked = self._kill_said = True
            self._say_to_all("kill")

    def _say_to_all(self, word: str) -> None:
        for node in self._nodes.values():
            if node.started:
                self._contact.say(node.name, word)
            else:
                node.finish(0)

    def _open_more(self) -> None:
        waiting = [node for node in self._nodes.values() if node.opened_at is None and not node.over]
        opening = sum(not node.heard and not node.over for node in self._nodes.values()) - len(waiting)
        for node in waiting[: AT_ONCE - opening]:
            config = {
                "pass_env": PASSED_BY_SLURM if self._reach.kind == "slurm" else PASSED,
                "cwd": self._cwd,
                "mark": self._mark,
                "beat": self._limits.beat,
                "silence": self._limits.silence,
                "grace": self._limits.lost_grace,
            }
            try:
                node.open(self._reach, self._python, config)
            except OSError as error:
                self._sign("start", node, f"{node.name}: {error.filename} could not be started: {error.strerror}")
                node.finish(0)

    # --- What nodes say

    def _hear(self, message: Message) -> None:
        if message.what == "broken":
            raise RuntimeError(f"the contact with the nodes broke: {message.values['text']}")
        node = self._nodes.get(message.node)
        if node is None or node.over:
            return
        if message.what == "swept":
            node.finish(message.number("killed"))
            if node.proof is None:
                wait = max(0.0, self._limits.safe_again - (message.at - self._contact.last[node.name]))
                text = f"{node.name} could not be reached to end what runs there; it ends by itself within {wait:.0f} s"
                self._event("warning", text=text)
        if node.lost:
            return
        if message.what == "words":
            node.add_words(message.values["text"])
        elif message.what == "closed":
            self._closed(node, message.at)
        elif message.what == "silent":
            self._name(node, message)
        else:
            self._hear_starter(node, message)

    def _hear_starter(self, node: NodeStream, message: Message) -> None:
        node.heard = True
        if all(other.heard for other in self._nodes.values()) and not self._signs and not self._stop_asked:
            self._start_all()
        if node.silence:
            self.troubles.remove(node.silence)
            node.silence = None
            self._event("link-back", node=node.name)
        code = message.number("code")
        if message.what == "alive":
            node.address = node.address or _address(message.values.get("address"))
        elif message.what == "started":
            node.pid = message.number("pid")
        elif message.what == "failed":
            text = plain(str(message.values.get("text")))[:300]
            self._sign("start", node, f"{node.name}: the stage could not be started there: {text}")
        elif message.what == "rank-ended":
            rank = message.number("rank")
            sign = Sign("rank", node.name, f"rank {rank} on {node.name} {how_work_ended(code)}", message.at, rank, code)
            (self._maybe if code is None else self._signs).extend([] if code == 0 or self._stop_asked else [sign])
        elif message.what == "ended":
            node.code = code
            if code != 0:
                self._launcher_failed(node, code, message.at)
        elif message.what in ("clean", "left"):
            node.last_word_at = message.at
            node.proof = message.number("killed") if message.what == "clean" else None
            if message.what == "left":
                text = (
                    f"{node.name}: processes {message.values.get('pids')} of this run do not end, not even by SIGKILL"
                )
                self._event("warning", text=plain(text)[:300])

    def _start_all(self) -> None:
        for node in self._nodes.values():
            if not node.started:
                node.started = True
                self._contact.say(node.name, "start")

    def _launcher_failed(self, node: NodeStream, code: int | None, at: float) -> None:
        """A launcher ends because a rank of its own did, or by itself."""
        if unclear := [sign for sign in self._maybe if sign.node == node.name]:
            self._signs.append(unclear[0])
        elif not any(sign.node == node.name for sign in self._signs):
            self._sign("launcher", node, f"the launcher on {node.name} {how_work_ended(code)}", at, code)

    def _closed(self, node: NodeStream, at: float) -> None:
        """The stream of a node has ended."""
        if node.last_word_at is not None:
            return  # as it should
        code = node.client_code(0.2)
        what = {"local": "the starter", "ssh": "ssh", "slurm": "srun"}[self._reach.kind]
        if not node.heard:
            kind = "node" if self._reach.kind != "local" and code in (255, None) else "start"
            self._sign(kind, node, f"{node.name}: {what} {how(code)}{node.words()}", at)
            node.finish(0)
            return
        if self._reach.kind == "local":
            text = f"{node.name}: the starter there {how(code)}"
        elif code is not None and code < 0:
            text = f"{node.name}: the connection to it is gone: {what} on this machine {how(code)}"
        else:
            text = f"{node.name}: it ended the connection (its processes were killed, or it restarts){node.words()}"
        self._give_up(
            node, "link" if code is not None and code < 0 and self._reach.kind != "local" else "node", text, at
        )

    # --- Silence

    def _check(self, node: NodeStream, now: float) -> None:
        if node.over or node.opened_at is None:
            return
        if node.last_word_at is not None:
            if now - node.last_word_at > LINGER_S or node.is_at_its_end():
                node.finish(node.proof)
            return
        if node.lost:
            return
        if not node.heard:
            if now - node.opened_at > self._limits.start:
                self._sign("node", node, f"{node.name}: no answer within {self._limits.start:.0f} s{node.words()}")
                node.finish(0)
            return
        quiet = now - self._contact.last[node.name]
        if quiet > self._limits.silent and not node.looking and node.silence is None:
            node.looking = True
            threading.Thread(target=self._look, args=(node.name, node.address), daemon=True).start()
        if quiet > self._limits.back_within and node.silence is not None:
            self._give_up(node, node.silence.kind, node.silence.text, now)

    def _look(self, name: str, address: tuple[str, int] | None) -> None:
        """In a thread: why a node is silent."""
        try:
            found = look_at(self._reach, name, address)
        except Exception as error:
            found = Silent("link", f"{name}: no contact ({error!r})")
        self._contact.tell(name, "silent", {"kind": found.kind, "text": found.text})

    def _name(self, node: NodeStream, message: Message) -> None:
        node.looking = False
        quiet = message.at - self._contact.last[node.name]
        if quiet > self._limits.silent and node.last_word_at is None:
            node.silence = Trouble(message.values["kind"], node.name, message.values["text"])
            self._report(node.silence, quiet)

    def _give_up(self, node: NodeStream, kind: str, text: str, at: float) -> None:
        """Do without a node from now on, and try to end what runs there by another connection."""
        node.lost = True
        if node.silence is None:
            node.silence = Trouble(kind, node.name, text)
            self._report(node.silence, at - self._contact.last[node.name])
        self._signs.append(Sign(kind, node.name, text, at))
        node.hang_up()
        # Once nothing can be alive by itself, there is no need to wait for a connection.
        left = self._limits.safe_again - (at - self._contact.last[node.name]) - self._limits.lost_grace
        threading.Thread(target=self._sweep, args=(node.name, max(self._limits.sweep, left)), daemon=True).start()

    def _sweep(self, name: str, patience: float) -> None:
        """In a thread: end what is left on a node that was given up."""
        killed, grace = None, self._limits.lost_grace
        with contextlib.suppress(Exception):
            killed = sweep(self._reach, [name], self._mark, grace, python=self._python, patience=patience)[name]
        self._contact.tell(name, "swept", {"killed": killed})

    # --- Trouble

    def _sign(self, kind: str, node: NodeStream, text: str, at: float | None = None, code: int | None = None) -> None:
        if not self._stop_asked:
            self._signs.append(Sign(kind, node.name, text, time.monotonic() if at is None else at, None, code))

    def _report(self, trouble: Trouble, after: float) -> None:
        self.troubles.append(trouble)
        self._event(
            "trouble",
            trouble=trouble.kind,
            node=trouble.node,
            rank=trouble.rank,
            text=trouble.text,
            after=round(after, 2),
        )

    def _settle(self, now: float) -> None:
        """Once the signs of a trouble are together: name the cause, and end the others' part."""
        if self._failed is not None or not self._signs:
            return
        running = [
            node
            for node in self._nodes.values()
            if node.heard and not node.lost and not node.over and node.code is None
        ]
        quiet = [node for node in running if now - self._contact.last[node.name] > 2 * self._limits.beat]
        settled = now - min(sign.at for sign in self._signs) >= self._limits.settle
        if running and (not settled or any(node.silence is None for node in quiet)):
            return
        for node in quiet:
            # Whatever failed elsewhere, failed because of it; and the stage cannot go on.
            assert node.silence is not None
            self._give_up(node, node.silence.kind, node.silence.text, self._contact.last[node.name])
        causes = judge(self._signs)
        self._failed = causes[0]
        reported = {node.name for node in self._nodes.values() if node.silence}
        for sign in causes:
            if sign.node not in reported:
                self._report(Trouble(sign.kind, sign.node, sign.text, sign.rank), now - sign.at)
        order = [sign.node for sign in causes]
        self.troubles.sort(key=lambda trouble: order.index(trouble.node) if trouble.node in order else len(order))
        self._say_to_all("term")
        self._kill_at = now + self._grace

    def _exit_code(self) -> int:
        if self._failed is not None:
            of_launcher = self._nodes[self._failed.node].code if self._failed.kind == "rank" else None
            return self._failed.code or of_launcher or ExitCode.FAILED
        codes = [node.code for node in self._nodes.values()]
        return next((code for code in codes if code), ExitCode.FAILED if None in codes else ExitCode.DONE)


def _address(value: object) -> tuple[str, int] | None:
    """What a starter says of its address, where it is one."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    host, port = value
    if isinstance(host, str) and _ADDRESS.fullmatch(host) and isinstance(port, int) and 0 < port < 1 << 16:
        return host, port
    return None
