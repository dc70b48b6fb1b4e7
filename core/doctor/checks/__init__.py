"""The doctor's checks, one module a group.

To add a check: let the probe print an observation (`OBSERVATIONS` in core/doctor/probe.py), write a judge with a docstring that
says why it is made, add it to the CHECKS of its group's module, and add its recorded observations to
tests/doctor/observations.py.
"""

from __future__ import annotations

from core.doctor.check import Check
from core.doctor.checks import build, credentials, cuda, deepspeed, files, gpu, kernels, limits, network, python, ssh

CHECKS: tuple[Check, ...] = tuple(
    check
    for module in (python, cuda, build, deepspeed, kernels, gpu, network, ssh, files, limits, credentials)
    for check in module.CHECKS
)
BY_ID: dict[str, Check] = {check.id: check for check in CHECKS}
