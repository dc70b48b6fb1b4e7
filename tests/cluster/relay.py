"""Stands for a connection: python relay.py NODE COMMAND... copies stdin, stdout and stderr as ssh does. Stopped, it is a silent link."""

from __future__ import annotations

import os
import subprocess
import sys
import threading


def copy(source: int, target: int) -> None:
    try:
        while data := os.read(source, 1 << 16):
            while data:
                data = data[os.write(target, data) :]
    except OSError:
        pass
    os.close(target)


def main(command: list[str]) -> int:
    # In a session of its own: who ends this end of a connection does not end what runs at the other.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        ways = [(0, os.dup(process.stdin.fileno())), (process.stdout.fileno(), 1), (process.stderr.fileno(), 2)]
        process.stdin.close()
        threads = [threading.Thread(target=copy, args=way, daemon=True) for way in ways]
        for thread in threads:
            thread.start()
        code = process.wait()
        for thread in threads[1:]:
            thread.join()
    return code if code >= 0 else 255


if __name__ == "__main__":
    code = main(sys.argv[2:])
    os._exit(code)
