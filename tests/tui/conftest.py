"""Async tests run under anyio's own pytest plugin (`pytestmark = pytest.mark.anyio`), which huggingface_hub brings anyway."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
