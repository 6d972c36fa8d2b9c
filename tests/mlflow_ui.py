"""The MLflow UI in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = "--no-sandbox --disable-quic --disable-background-networking --disable-component-update --disable-sync"
MODE = "?workflowType=machine_learning"


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    """A page of a browser that is as wide as charts need."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no browser at {CHROMIUM}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS.split())
        opened = browser.new_page(viewport={"width": 1600, "height": 1100})
        opened.set_default_timeout(90_000)
        yield opened
        browser.close()


def shows(page: Any, words: str) -> bool:
    """Whether the page comes to show the words; a page that never does fails here, by the browser's time-out."""
    page.get_by_text(words).first.wait_for()
    return bool(page.get_by_text(words).first.is_visible())
