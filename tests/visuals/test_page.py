from __future__ import annotations

import html

import numpy as np
import pytest

from interpreto_mlops.errors import InputError
from interpreto_mlops.visuals import page
from tests.visuals.hostile import HOSTILE, PAYLOADS, PLAIN, TURNING, UNPRINTABLE, Page


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_shown_has_one_character_for_each_of_the_text(text: str) -> None:
    shown = page.visible(text)
    assert len(shown) == len(text)
    shown.encode("utf-8")
    assert all(a == b for a, b in zip(shown, text, strict=True) if b.isprintable() and not 0xD800 <= ord(b) < 0xE000)


@pytest.mark.parametrize("text", [*PAYLOADS, *PLAIN, TURNING])
def test_raw_text_reads_back(text: str) -> None:
    read = Page(f"<p>{page.raw_text(text)}</p>").find("p")[0][1]
    assert read == text


def test_control_characters_are_pictures_and_surrogates_are_replaced() -> None:
    read = html.unescape(str(page.raw_text(UNPRINTABLE)))
    assert read == "nul ␀ bell ␇ escape ␛[31m del ␡ next � lone � and � end"


def test_direction_controls_are_boxed_in_and_leave_labels_altogether() -> None:
    boxes = Page(f"<p>{page.raw_text(TURNING)}</p>").find("span", "control")
    assert [attributes["data-code"] for attributes, _ in boxes] == ["RLO", "PDF", "LRI", "PDI", "LRE"]
    assert not set(page.visible(TURNING)) & {chr(code) for code in (0x202E, 0x202C, 0x2066, 0x2069, 0x202A)}


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.5, "0.500"),
        (-0.25, "−0.250"),
        (0, "0"),
        (0.0, "0.000"),
        (12345, "12,345"),
        (np.int64(-3), "−3"),
        (np.float32(0.5), "0.500"),
        (1.23456e-5, "1.23e−05"),
        (123456.7, "1.23e+05"),
        (float("nan"), "n/a"),
        (None, "n/a"),
        (float("-inf"), "−∞"),
    ],
)
def test_numbers_are_written_for_readers(value: object, written: str) -> None:
    assert page.number(value) == written


def test_signed_compact_and_share() -> None:
    assert page.signed(0.5) == "+0.500"
    assert page.signed(0.0) == "0.000"
    assert page.signed(float("inf")) == "+∞"
    assert page.compact(8.0) == "8"
    assert page.compact(8.5) == "8.500"
    assert page.compact(float("nan")) == "n/a"
    assert [page.share(value) for value in (0, 1, 0.123, 0.0456, 0.00012, float("nan"))] == [
        "0 %",
        "100 %",
        "12 %",
        "4.6 %",
        "0.012 %",
        "n/a",
    ]


@pytest.mark.parametrize(
    "address",
    [
        "javascript:alert(1)",
        " JavaScript:alert(1)",
        "java\nscript:alert(1)",
        "data:text/html,x",
        "vbscript:x",
        "\x01javascript:x",
    ],
)
def test_links_that_could_run_code_are_refused(address: str) -> None:
    with pytest.raises(InputError, match="must be http, https or relative"):
        page.safe_link(address)


@pytest.mark.parametrize(
    "address", ["https://a.org/b:c", "http://127.0.0.1:5000/#/x", "#part", "folder/a:b.html", "a.html"]
)
def test_plain_links_stay(address: str) -> None:
    assert page.safe_link(address) == address


def test_only_png_and_svg_are_embedded() -> None:
    assert page.data_uri(b"<svg xmlns='http://www.w3.org/2000/svg'/>").startswith("data:image/svg+xml;base64,")
    with pytest.raises(InputError, match="PNG or SVG"):
        page.data_uri(b"<html>")


def test_a_template_that_misses_a_value_is_an_error() -> None:
    with pytest.raises(Exception, match="undefined"):
        page.render("report.html", title="x")


def test_excerpts_are_one_line_of_bounded_length() -> None:
    assert page.excerpt("a\n b\t c") == "a b c"
    assert page.excerpt("word " * 100, 20) == "word word word word…"
    assert len(page.excerpt("x" * 100_000, 50)) == 50
    assert page.excerpt(" " * 10_000 + "late", 20).endswith("…")
