"""Taking secrets out of a log before it reaches the disk."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

SECRET_NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL)", re.IGNORECASE)
NOT_SECRET = frozenset({"TOKENIZERS_PARALLELISM"})

# What stands in group 1 is kept: the name of a setting whose value is the secret.
_PATTERNS = re.compile(
    rb"hf_[A-Za-z0-9]{20,}"
    rb"|wandb_v1_[A-Za-z0-9_]{20,}"
    rb"|(?<=wandb login )[0-9a-f]{40}|(?<=--relogin )[0-9a-f]{40}"
    rb"|A[KS]IA[0-9A-Z]{16}"
    rb"|gh[opsur]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,}|glpat-[A-Za-z0-9_-]{20,}|xox[abprs]-[A-Za-z0-9-]{10,}"
    rb"|\bsk-(?:[a-z0-9]{2,8}-){0,2}[A-Za-z0-9_]{20,}"
    rb"|\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*"
    rb"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
    rb"|((?:[Aa]uthorization: ?(?:Bearer |Basic )?|X-Amz-(?:Credential|Signature)=))[^&\s'\"]+"
    rb"|((?i:api[_-]?key|password|secret(?:[_-]access)?(?:[_-]key)?|(?:access|auth|refresh|hf|hub)_token)[\"']?\s?[=:]\s?[\"']?)[^\s\"',;]{8,}"
)
MASK = b"***"
LONGEST_HELD = 1 << 16


def secret_names(environment: Mapping[str, str]) -> list[str]:
    """The variables whose names say that they hold a secret."""
    return [name for name in environment if SECRET_NAME.search(name) and name not in NOT_SECRET]


class Masker:
    """Masks line by line, so that a secret cut by a chunk border is still found.

    `feed` returns what may be written; `flush` gives up the unfinished line that was held back (a progress bar, a prompt).
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        secrets = {environment[name].encode() for name in secret_names(environment) if len(environment[name]) >= 8}
        longest_first = sorted(secrets, key=len, reverse=True)
        self._values = re.compile(b"|".join(map(re.escape, longest_first))) if secrets else None
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        data = self._held + chunk
        cut = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if not cut and len(data) > LONGEST_HELD:
            cut = len(data)
        self._held = data[cut:]
        return self.mask(data[:cut])

    def flush(self) -> bytes:
        held, self._held = self._held, b""
        return self.mask(held)

    def mask(self, data: bytes) -> bytes:
        """`data` with every known value and everything that looks like a token replaced by ***."""
        if self._values:
            data = self._values.sub(MASK, data)
        return _PATTERNS.sub(lambda match: (match[1] or match[2] or b"") + MASK, data)
