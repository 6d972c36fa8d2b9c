"""The pages in a real browser, framed as the MLflow UI frames an HTML artifact."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interpreto_mlops.attributions.results import AttributionSet
from interpreto_mlops.visuals import attributions_html, comparison_html, concepts_html, figures, report_html
from tests.visuals.concept_samples import hostile_descriptions, importance
from tests.visuals.hostile import HOSTILE, PAYLOADS, UNPRINTABLE, attribution, continued
from tests.visuals.test_comparison_html import hostile_comparison

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
HOST = "http://viewer.invalid/"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no browser at {CHROMIUM}"),
]


@dataclass
class Seen:
    """What happened while a page was open."""

    frame: Any
    page: Any
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def assert_quiet(self) -> None:
        self.page.wait_for_timeout(150)
        assert self.console == []
        assert self.dialogs == []
        assert [url for url in self.requests if not url.startswith(("blob:", "data:image/"))] == [HOST]
        assert self.frame.evaluate("window.__pwned") is None
        assert self.page.evaluate("window.__pwned") is None


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.route(
        HOST, lambda route: route.fulfill(content_type="text/html", body="<!doctype html><title>viewer</title>")
    )
    yield context.new_page()
    context.close()


def opened(page: Any, html: str, sandbox: str = "allow-scripts") -> Seen:
    """Open a page in a frame as the MLflow UI does: from a blob, without the origin of the viewer."""
    seen = Seen(None, page)
    page.on("console", lambda message: seen.console.append(message.text))
    page.on("pageerror", lambda error: seen.console.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.on("dialog", lambda dialog: (seen.dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(HOST)
    page.evaluate(
        """([html, sandbox]) => new Promise(done => {
            const frame = document.createElement("iframe");
            frame.sandbox = sandbox;
            frame.style = "width:1240px;height:860px";
            frame.onload = () => done();
            frame.src = URL.createObjectURL(new Blob([html], {type: "text/html"}));
            document.body.append(frame);
        })""",
        [html, sandbox],
    )
    seen.frame = page.frames[1]
    return seen


def attributions_page() -> str:
    sets = [
        AttributionSet([attribution(text, index=i, method=method) for i, text in enumerate(HOSTILE)])
        for method in ("occlusion", PAYLOADS[0])
    ]
    return attributions_html.render_page(sets, title=PAYLOADS[1], facts=dict(zip(PAYLOADS, PAYLOADS, strict=True)))


def concepts_page() -> str:
    descriptions = hostile_descriptions()
    values = np.random.default_rng(0).normal(size=(len(PAYLOADS), len(descriptions)))
    facts = dict.fromkeys(PAYLOADS, PAYLOADS[0])
    return concepts_html.render_page(
        descriptions, importance(values, PAYLOADS), title=PAYLOADS[2], facts=facts, metrics=dict.fromkeys(PAYLOADS, 0.5)
    )


def report_page() -> str:
    picture = report_html.Picture(figures.to_png(figures.training_figure([{"loss": 1.0}])), PAYLOADS[1], PAYLOADS[0])
    table = report_html.Table([report_html.Column(text) for text in PAYLOADS], [list(PAYLOADS)], PAYLOADS[0])
    command = report_html.Command(PAYLOADS[0], PAYLOADS[1])
    sections = [report_html.Section(text, [report_html.Paragraph(text), table, picture, command]) for text in PAYLOADS]
    return report_html.render_page(report_html.Report(PAYLOADS[0], sections, lead=PAYLOADS[1], command=PAYLOADS[2]))


def matrix_page() -> str:
    items = [continued(PAYLOADS[i - 1], text, index=i, method=PAYLOADS[0]) for i, text in enumerate(PAYLOADS)]
    long = continued("word " * 150, "more " * 60, index=len(items))
    return attributions_html.render_page([AttributionSet([*items, long])], title=PAYLOADS[1])


def comparison_page() -> str:
    section = report_html.Section(PAYLOADS[2], comparison_html.comparison_blocks(hostile_comparison()))
    return report_html.render_page(report_html.Report(PAYLOADS[0], [section]))


PAGES = [attributions_page, concepts_page, report_page, matrix_page, comparison_page]


@pytest.mark.parametrize("make", PAGES)
def test_nothing_of_a_hostile_text_runs_or_is_loaded(page: Any, make: Any) -> None:
    seen = opened(page, make())
    seen.assert_quiet()
    assert seen.frame.evaluate("document.querySelectorAll('script,iframe,svg,link,object,embed').length") == 0
    assert seen.frame.evaluate("document.querySelector('h1').textContent") in PAYLOADS
    # Hovering, opening and clicking wake handlers that an attribute could have smuggled in.
    seen.frame.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    seen.frame.evaluate(
        "document.querySelectorAll('main *').forEach(one => one.dispatchEvent(new MouseEvent('mouseover')))"
    )
    seen.assert_quiet()


def test_the_trap_catches_what_is_not_escaped(page: Any) -> None:
    seen = opened(page, f"<!doctype html><body>{PAYLOADS[0]}{PAYLOADS[8]}")
    page.wait_for_timeout(150)
    assert seen.frame.evaluate("window.__pwned") == 1
    assert any("leak.png" in url for url in seen.requests)


def test_the_policy_stops_a_script_that_were_there_all_the_same(page: Any) -> None:
    html = attributions_html.render_page([], title="x").replace(
        "<main>", f"<main>{PAYLOADS[0]}<img src=x onerror=__pwned=1>"
    )
    seen = opened(page, html)
    page.wait_for_timeout(150)
    assert seen.frame.evaluate("window.__pwned") is None
    assert any("Content Security Policy" in message for message in seen.console)


def test_the_browser_reads_the_texts_back(page: Any) -> None:
    seen = opened(page, attributions_page())
    read = seen.frame.evaluate("[...document.querySelectorAll('.text')].map(one => one.textContent)")
    expected = [text for text in HOSTILE for _ in range(2)]
    assert [a for a, b in zip(read, expected, strict=True) if b != UNPRINTABLE] == [
        b for b in expected if b != UNPRINTABLE
    ]


def test_direction_overrides_do_not_move_the_rest(page: Any) -> None:
    item = attribution("abc \u202edef", index=0)
    seen = opened(page, attributions_html.render_page([AttributionSet([item])], title="x"))
    left = seen.frame.evaluate(
        "[...document.querySelectorAll('.text .e')].map(one => one.getBoundingClientRect().left)"
    )
    assert left == sorted(left)
    runs = seen.frame.evaluate(
        """(() => {
            const node = [...document.querySelectorAll('.text .e')][1].firstChild;
            const range = document.createRange();
            return [0, 1, 2].map(i => { range.setStart(node, i); range.setEnd(node, i + 1);
                                        return range.getBoundingClientRect().left; });
        })()"""
    )
    assert runs == sorted(runs)


@pytest.mark.parametrize("make", PAGES)
@pytest.mark.parametrize("width", [360, 1240])
def test_no_page_is_wider_than_its_window(page: Any, make: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.set_content(make())
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def rgba(colour: str) -> np.ndarray:
    return np.array([*map(float, re.findall(r"[\d.]+", colour)), 1.0][:4])


def contrast(ink: np.ndarray, over: np.ndarray, under: np.ndarray) -> float:
    """The contrast of WCAG 2.2 between a colour and a half-transparent one over an opaque one."""
    mixed = over[3] * over[:3] + (1 - over[3]) * under[:3]
    channels = np.stack([ink[:3], mixed]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    darker, lighter = sorted(linear @ [0.2126, 0.7152, 0.0722])
    return float((lighter + 0.05) / (darker + 0.05))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_the_strongest_colours(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    item = attribution("good bad", scores=np.array([[1.0, -1.0]]), standard_error=None)
    page.set_content(attributions_html.render_page([AttributionSet([item])], title="x"))
    colours = page.evaluate(
        """() => [...document.querySelectorAll('.text .e')].map(one => {
            const style = getComputedStyle(one), card = getComputedStyle(one.closest('.card'));
            return [style.color, style.backgroundColor, card.backgroundColor];
        })"""
    )
    contrasts = [contrast(*map(rgba, row)) for row in colours]
    assert len(contrasts) == 2
    assert min(contrasts) >= 4.5
