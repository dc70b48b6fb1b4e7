"""Host keys that this machine's ssh does not know, and an ssh configuration of our own to keep them in: ~/.ssh stays as it is.

The configuration names our file of known hosts before the user's and includes the user's own and the system's, so that everything
set there still holds (ssh takes the first value that it finds). ssh(1) reads neither of the two by itself under -F.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any

from core.doctor.home import ssh_config

SCAN_S = 5
KEY = re.compile(r"(\S+) ((?:ssh|ecdsa|sk)-[a-z0-9@.-]+) ([A-Za-z0-9+/]+=*)")


def own_configuration() -> tuple[str, ...]:
    """ssh's option for our configuration, where the user has had it made."""
    path = ssh_config()
    # Path.is_file raises where a folder may not be looked into.
    return ("-F", str(path)) if os.path.isfile(path) else ()  # noqa: PTH113


def offered_keys(nodes: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What these nodes offer as their keys, asked at once: by node `keys` (lines of known_hosts), `fingerprints`, `config`.

    A node is missing where it can't be asked directly, such as behind a ProxyJump.
    """
    settings = {node: _settings(node) for node in nodes}
    by_port: dict[str, set[str]] = {}
    for setting in settings.values():
        by_port.setdefault(setting["port"], set()).add(setting["hostname"])
    seen: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for port, hosts in by_port.items():
        for host, kind, key in _scanned(port, hosts):
            seen.setdefault((port, host), []).append((kind, key))
    text = config_text(_known_hosts(settings.values()))
    found = {}
    for node, setting in settings.items():
        host, port = setting["hostname"], setting["port"]
        name = setting.get("hostkeyalias") or (host if port == "22" else f"[{host}]:{port}")
        if keys := sorted(seen.get((port, host), [])):
            found[node] = {
                "keys": [f"{name} {kind} {key}" for kind, key in keys],
                "fingerprints": [f"{node}: {fingerprint(key)} ({kind})" for kind, key in keys],
                "config": text,
                "config_file": str(ssh_config()),
            }
    return found


def fingerprint(key: str) -> str:
    """The fingerprint of a key in base64, as `ssh-keygen -l` prints it (RFC 4648 without padding)."""
    digest = hashlib.sha256(base64.b64decode(key)).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def config_text(known_hosts: Iterable[str]) -> str:
    """Our configuration; `known_hosts` are the files that the user's own ssh looks into."""
    files = " ".join(f'"{path}"' for path in (str(ssh_config().with_name("known_hosts")), *known_hosts))
    return (
        "# By llm-wizard doctor --fix ssh.config, for its own connections. Your ~/.ssh/config holds for all that is not set here.\n"
        f"UserKnownHostsFile {files}\n"
        "StrictHostKeyChecking yes\n"
        "Include ~/.ssh/config\n"
        "Include /etc/ssh/ssh_config\n"
    )


def _settings(node: str) -> dict[str, str]:
    """What ssh makes of a name: its address, port and files of known hosts."""
    try:
        argv = ["ssh", *own_configuration(), "-G", "--", node]
        said = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SCAN_S).stdout
    except (OSError, subprocess.TimeoutExpired):
        said = ""
    lines = (line.partition(" ") for line in said.splitlines())
    return {"hostname": node, "port": "22", **{name: value for name, _, value in lines}}


def _known_hosts(settings: Iterable[Mapping[str, str]]) -> list[str]:
    ours = str(ssh_config().with_name("known_hosts"))
    files = dict.fromkeys(path for one in settings for path in one.get("userknownhostsfile", "").split())
    return [path.replace("%", "%%") for path in files if path not in (ours, "none", "/dev/null")]


def _scanned(port: str, hosts: Iterable[str]) -> Iterable[tuple[str, str, str]]:
    """Host, kind and key of each line of ssh-keyscan's that is one."""
    hosts = sorted(hosts)
    try:
        done = subprocess.run(
            ["ssh-keyscan", "-T", str(SCAN_S), "-p", port, "--", *hosts],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SCAN_S * (2 + len(hosts)),
        )
    except (OSError, subprocess.TimeoutExpired):
        return
    names = {host if port == "22" else f"[{host}]:{port}": host for host in hosts}
    for line in done.stdout.splitlines():
        match = KEY.fullmatch(line)
        if match and match[1] in names:
            try:
                base64.b64decode(match[3], validate=True)
            except binascii.Error:
                continue
            yield names[match[1]], match[2], match[3]
