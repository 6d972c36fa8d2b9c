"""No test here depends on a store that the machine has configured, nor leaves one behind."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _nobody(nobody: None) -> None:
    """See `nobody`."""
