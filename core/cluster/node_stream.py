"""One node's part of a stage as the head has it: the connection to its starter, what it prints, and what is known of it."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from typing import Any

from core.cluster.contact import Contact, end_client
from core.cluster.reach import Reach, client_environment, piped_program, piped_python
from core.cluster.sweep import STARTER
from core.runs.masking import Masker
from core.runs.process import Trouble, end_with_parent, write_if_possible
from core.text.plain import plain

LONGEST_LINE = 1 << 16


@dataclass(frozen=True)
class NodeStart:
    """What runs on one node. `env` is all that its processes get, but for what its login passes on (nodes_process.PASSED)."""

    node: str
    argv: Sequence[str]
    env: Mapping[str, str]


class NodeStream:
    """A node, from before its connection is opened until `over`."""

    def __init__(self, start: NodeStart, log: FileIO, selector: selectors.BaseSelector, contact: Contact) -> None:
        self.start = start
        self.name = start.node
        self.opened_at: float | None = None
        self.heard = False
        self.started = False
        """Told to start; not before all nodes are there."""
        self.address: tuple[str, int] | None = None
        self.pid: int | None = None
        self.code: int | None = None
        """How the launcher there ended."""
        self.looking = False
        self.silence: Trouble | None = None
        """Named while it is not heard, and when it is given up."""
        self.last_word_at: float | None = None
        """When it proved, or failed to prove, that nothing is left."""
        self.lost = False
        """Given up."""
        self.proof: int | None = None
        self.over = False
        self._log, self._selector, self._contact = log, selector, contact
        self._masker = Masker()
        self._line = b""
        self._words: deque[str] = deque(maxlen=4)
        self._client: subprocess.Popen[bytes] | None = None
        self._output_open = False

    def open(self, reach: Reach, python: str, config: Mapping[str, Any]) -> None:
        """Start the starter; it waits for "start". OSError where there is no ssh or srun here."""
        self.opened_at = time.monotonic()
        self._client = client = subprocess.Popen(
            reach.argv(self.name, piped_python(python, "llm-wizard-starter")),
            env=client_environment(),
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in a terminal is not for them
            preexec_fn=end_with_parent,
        )
        assert client.stdout is not None
        os.set_blocking(client.stdout.fileno(), False)
        self._selector.register(client.stdout.fileno(), selectors.EVENT_READ, self.read)
        self._output_open = True
        own = {"argv": list(self.start.argv), "env": dict(self.start.env)}
        self._contact.add(self.name, client, piped_program(STARTER, {**config, **own}))

    def read(self) -> None:
        """Take what it has printed; whole lines go into the log, with the node's name before them."""
        if not self._output_open:
            return
        assert self._client is not None
        assert self._client.stdout is not None
        data = b""
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):  # 4 MiB: other nodes want to be heard too
                chunk = os.read(self._client.stdout.fileno(), 1 << 16)
                data += chunk
                if not chunk:
                    self._close_output()
                    break
        self._write(self._masker.feed(data))

    def is_at_its_end(self) -> bool:
        """Whether all output is there and the connection has ended by itself."""
        return not self._output_open and (self._client is None or self._client.poll() is not None)

    def client_code(self, wait: float = 0) -> int | None:
        """How ssh, srun, or the starter on this machine, has ended; None where it has not within `wait` seconds."""
        assert self._client is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._client.wait(wait)
        return self._client.returncode

    def add_words(self, text: str) -> None:
        """Keep what ssh, a login script or a traceback said."""
        self._words.append(self._masker.mask(plain(text).encode()).decode("utf-8", "replace")[:300])

    def words(self) -> str:
        """ ": " and what was said last; empty where nothing was."""
        return f": {'; '.join(self._words)}" if self._words else ""

    def hang_up(self) -> None:
        """End the connection, whatever is still on its way."""
        self._contact.drop(self.name)
        if self._client is not None:
            end_client(self._client)

    def finish(self, proof: int | None) -> None:
        """Nothing more is expected of it."""
        if self.over:
            return
        self.read()
        self._close_output()
        self._write(self._masker.flush(), last=True)
        self.hang_up()
        self.proof, self.over = proof, True

    def _close_output(self) -> None:
        if self._output_open and self._client and self._client.stdout:
            self._output_open = False
            self._selector.unregister(self._client.stdout.fileno())
            self._client.stdout.close()

    def _write(self, data: bytes, last: bool = False) -> None:
        *lines, self._line = (self._line + data).split(b"\n")
        if self._line and (last or len(self._line) > LONGEST_LINE):
            lines.append(self._line)
            self._line = b""
        if lines:
            name = self.name.encode()
            write_if_possible(self._log, b"".join(b"%b: %b\n" % (name, line) for line in lines))
