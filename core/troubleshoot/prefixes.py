"""Which host and rank a line came from, and the line without the marks that say so.

Launchers put marks before lines: torch `[rank3]: `, pdsh and clush `node-2: `, mpirun `[1,3]<stderr>:`, torchrun `[default3]:`,
`srun -l` `3: `, compose `worker-1  | `, Ray, Kubernetes, journald, and marks of people's own such as `[gpu07][rank 3]`. They nest.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

_HOST = r"[A-Za-z0-9][\w.-]{0,62}"
_TIME = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?"
_CERTAIN = tuple(
    re.compile(pattern)
    for pattern in (
        r"\[\d+,(?P<rank>\d+)\]<(?:stdout|stderr|stddiag)>:",
        r"\[rank[ :=_-]?(?P<rank>\d+)\](?:: ?|\s|(?=\[))",
        rf"\[(?:(?P<host>{_HOST})[:/ ])?(?:default|trainer|worker|learner|actor)[_-]?(?P<rank>\d+)\](?::|\s)",
        rf"\[(?P<host>{_HOST})[ :,/|-]{{1,3}}(?i:(?:global |local )?rank)[ :=_-]{{0,2}}(?P<rank>\d+)\](?:: ?|\s)",
        r"\[(?i:(?:global |local )?rank)[ :=_-]{0,2}(?P<rank>\d+)(?:/\d+)?\](?:: ?|\s(?! ?Watchdog))",
        r"(?i:(?:global[ _]|local[ _])?rank)[ :=_-]{0,2}(?P<rank>\d+)\s?[:|>] ?",
        rf"(?P<host>{_HOST}):(?i:rank)[ _-]?(?P<rank>\d+)[:|] ?",
        r"\(\w+(?:\.\w+)? pid=\d+(?:, ip=(?P<host>[\d.]+))?\) ?",
        r"\[pod/(?P<host>[^/\]\s]{1,80})/[^\]\s]{1,80}\] ",
        r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) [ \d]\d \d\d:\d\d:\d\d (?P<host>[\w.-]{1,63}) [\w./@-]{1,40}(?:\[\d+\])?: ",
        r"\[ *\d{1,8}\.\d{6}\] ",
        rf"{_TIME} (?:stdout|stderr) [FP] ",
        rf"{_TIME}(?: ?[|:-]{{1,2}} | )",
        rf"\[{_TIME}\](?: ?[|:-]{{1,2}} | )(?=\[?(?:rank|Rank|Traceback|{_HOST}:))",
    )
)
_POSSIBLE_HOST = re.compile(rf"(?P<host>{_HOST})(?P<mark>: ?|\s*\| )")
_POSSIBLE_RANK = re.compile(r" {0,4}(?P<rank>\d{1,5}): ?")
_IN_BRACKETS = re.compile(rf"\[(?P<host>{_HOST})\](?:: ?|\s|(?=\[))")
_NO_HOST = re.compile(
    r"(?:\w*(?:error|exception|warning|exit|interrupt|failed|failure|fault|info|debug|critical|fatal|note|hint|usage|step|epoch|loss|total))"
    r"|(?:srun|sbatch|salloc|slurmstepd|slurmd|bash|sh|zsh|ssh|scp|pdsh|pdcp|rsync|make|ninja|nvcc|gcc|g\+\+|cc1plus|ld|python[\d.]*|pip|wandb|"
    r"git|env|sudo|cat|ls|cp|mv|rm|mkdir|docker|torchrun|deepspeed|accelerate|mpirun|prterun|orted|nvidia-smi|kernel|NVRM|"
    r"Traceback|File|http|https|tar|curl|wget|conda|uv|x86_64.*|.*\.(?:py|cc|cpp|cu|cuh|h|hpp|c|o|so|sh|json|yaml)|\d+)",
    re.IGNORECASE,
)
_TRACEBACK = re.compile(r"\s*(?:Traceback \(most recent call last\)|File \"[^\"]{1,300}\", line \d)")


@dataclass(frozen=True)
class Origin:
    """Where a line comes from; None where nothing says it."""

    host: str | None = None
    rank: str | None = None

    def __str__(self) -> str:
        parts = [self.host or "", f"rank {self.rank}" if self.rank is not None else ""]
        return " ".join(part for part in parts if part)


class Prefixes:
    """Strips marks. A word and a colon may be a host or a part of the message, so the whole log decides which words are hosts."""

    def __init__(self, lines: Iterable[str]) -> None:
        hosts: Counter[str] = Counter()
        proofs: Counter[str] = Counter()
        ranks: Counter[str] = Counter()
        total = 0
        for line in lines:
            total += 1
            line, _ = _strip_certain(line, Origin())
            if found := _POSSIBLE_RANK.match(line):
                ranks[found["rank"]] += 1
                proofs["a rank"] += _starts_traceback(line[found.end() :])
            elif found := _POSSIBLE_HOST.match(line) or _IN_BRACKETS.match(line):
                hosts[found["host"]] += 1
                proofs[found["host"]] += _starts_traceback(line[found.end() :])
        self._hosts = frozenset(word for word, count in hosts.items() if _is_host(word, count, proofs[word]))
        # `srun -l` marks every line, so its marks are most of the log.
        self._ranks = bool(ranks) and (proofs["a rank"] > 0 or sum(ranks.values()) >= max(3, 0.5 * total))

    def split(self, line: str, origin: Origin = Origin()) -> tuple[str, Origin]:
        """The line without its marks, and where it comes from."""
        for _ in range(4):
            before = line
            line, origin = _strip_certain(line, origin)
            found = _POSSIBLE_HOST.match(line) or _IN_BRACKETS.match(line)
            if found and found["host"] in self._hosts:
                line, origin = line[found.end() :], Origin(found["host"], origin.rank)
            elif self._ranks and origin.rank is None and (found := _POSSIBLE_RANK.match(line)):
                line, origin = line[found.end() :], Origin(origin.host, found["rank"])
            if line == before:
                break
        return line, origin


def _strip_certain(line: str, origin: Origin) -> tuple[str, Origin]:
    for _ in range(4):
        found = next((found for pattern in _CERTAIN if (found := pattern.match(line))), None)
        if found is None:
            break
        names = found.groupdict()
        origin = Origin(names.get("host") or origin.host, names.get("rank") or origin.rank)
        line = line[found.end() :]
    return line, origin


def _starts_traceback(line: str) -> bool:
    return _TRACEBACK.match(_strip_certain(line, Origin())[0]) is not None


def _is_host(word: str, count: int, proofs: int) -> bool:
    if _NO_HOST.fullmatch(word):
        return False
    if proofs or word == "localhost":
        return True
    # CamelCase words are exceptions and classes; a host name is lower case or has a digit.
    named_like_one = any(letter.isdigit() for letter in word) or "-" in word or "." in word
    return count >= 2 and named_like_one and (word == word.lower() or word == word.upper())
