"""Text in figures: every character drawn or replaced, and no text taken for mathematics or TeX."""

from __future__ import annotations

import unicodedata
from functools import cache

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from interpreto_mlops.visuals.page import excerpt, visible

_FIRST = "DejaVu Sans"
# matplotlib brings DejaVu only, which has no Han, kana, Hangul or Indic letters; these do, where they are installed.
_WIDE = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Noto Sans JP",
    "Noto Sans KR",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans",
    "Malgun Gothic",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Arial Unicode MS",
)
_BOX = "\u25a1"


@cache
def families() -> tuple[str, ...]:
    """Return the font families that figures use: DejaVu Sans, then the installed ones with other scripts."""
    installed = {entry.name for entry in font_manager.fontManager.ttflist}
    return (_FIRST, *(name for name in _WIDE if name in installed))


def drawable(text: str, length: int = 28) -> str:
    """Return a one-line label with only characters that the fonts have; others become boxes.

    Arguments:
        text: any text.
        length: the label is cut to it.
    """
    return "".join(_drawn(character) for character in excerpt(visible(text), length))


def set_plainly(figure: Figure) -> Figure:
    """Make every text of a figure plain, in our fonts, whatever the user's matplotlib settings are."""
    for artist in figure.findobj(Text):
        assert isinstance(artist, Text)
        artist.set_usetex(False)
        artist.set_parse_math(False)
        artist.set_fontfamily(list(families()))
    return figure


@cache
def _characters() -> frozenset[int]:
    paths = (font_manager.findfont(name, fallback_to_default=False) for name in families())
    return frozenset(code for path in paths for code in FT2Font(path).get_charmap())


def _drawn(character: str) -> str:
    if ord(character) in _characters():
        return character
    # Joiners and variation selectors only change how their neighbours look.
    return "" if unicodedata.category(character) in ("Cf", "Mn", "Me") else _BOX
