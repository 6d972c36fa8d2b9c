"""HTML pages that need nothing but themselves: no script, no other file, and everything put in is escaped.

Text from data is hostile. Templates receive it as plain `str`, and the environment makes it harmless on its way out
(`_finalize`), so no template and no caller can forget to.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterable, Mapping
from functools import cache
from numbers import Integral
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from interpreto_mlops.errors import InputError

MINUS = "\u2212"
_MISSING = "n/a"
_LINK_SCHEMES = ("http", "https")
_MEDIA_TYPES = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"<?xml", "image/svg+xml"), (b"<svg", "image/svg+xml"))

# Each character stands for exactly one, so that character spans hold in what is shown.
_VISIBLE: dict[int, int] = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n\r"},
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
    **dict.fromkeys(range(0xD800, 0xE000), 0xFFFD),
}
# They turn the reading order of what follows, also of the page around them.
_DIRECTION_CONTROLS = {
    0x202A: "LRE",
    0x202B: "RLE",
    0x202C: "PDF",
    0x202D: "LRO",
    0x202E: "RLO",
    0x2066: "LRI",
    0x2067: "RLI",
    0x2068: "FSI",
    0x2069: "PDI",
}
_DIRECTION_SPLIT = re.compile("([" + "".join(map(chr, _DIRECTION_CONTROLS)) + "])")
_BLANKS = {"\n": "⏎", "\r": "⏎", "\t": "⇥"}
_HARMLESS = {**_VISIBLE, **dict.fromkeys(_DIRECTION_CONTROLS, 0xFFFD)}


def render(template: str, **values: Any) -> str:
    """Fill a template of this package; every value is escaped.

    Arguments:
        template: file name below `templates/`.
        values: what the template asks for; a missing one is an error.
    """
    return _environment().get_template(template).render(**values)


def visible(text: str) -> str:
    """Replace what HTML or UTF-8 cannot carry, and what turns the reading order, one character for one.

    Control characters become their pictures (␀); lone surrogates and direction overrides become U+FFFD.
    """
    return text.translate(_HARMLESS)


def raw_text(text: str) -> Markup:
    """Escape a text that is shown as it is: direction overrides stay in it, each boxed in so that it turns nothing."""
    parts: list[str] = []
    for part in _DIRECTION_SPLIT.split(text):
        name = _DIRECTION_CONTROLS.get(ord(part)) if len(part) == 1 else None
        body = _escaped(part.translate(_VISIBLE))
        parts.append(f'<span class="control" data-code="{name}">{body}</span>' if name else body)
    return Markup("".join(parts))


def number(value: object, digits: int = 3, *, signed: bool = False) -> str:
    """Write a number for a reader: a true minus sign, no sign of binary noise, `n/a` for NaN and None.

    Arguments:
        value: int, float, numpy scalar or None.
        digits: decimals of a number between 0.001 and 10,000; significant digits of others.
        signed: write a plus sign before positive numbers.
    """
    if value is None:
        return _MISSING
    if isinstance(value, Integral):
        return f"{int(value):{'+' if signed else ''},}".replace("-", MINUS)
    real = float(value)  # type: ignore[arg-type]
    if math.isnan(real):
        return _MISSING
    sign = "+" if signed and real != 0 else ""
    if math.isinf(real):
        return MINUS + "∞" if real < 0 else sign + "∞"
    written = f"{real:{sign}.{digits}f}" if real == 0 or 1e-3 <= abs(real) < 1e4 else f"{real:{sign}.{digits}g}"
    return written.replace("-", MINUS)


def signed(value: object, digits: int = 3) -> str:
    """Write a number with its sign."""
    return number(value, digits, signed=True)


def compact(value: object) -> str:
    """Write a number without decimals where it has none: counts often come as floats."""
    real = float("nan") if value is None else float(value)  # type: ignore[arg-type]
    return number(int(real) if math.isfinite(real) and real == int(real) else value)


def share(value: float) -> str:
    """Write a share between 0 and 1 in per cent."""
    if math.isnan(value):
        return _MISSING
    percent = 100 * value
    return f"{percent:.{0 if percent >= 10 or percent == 0 else 1 if percent >= 0.1 else 3}f} %".replace("-", MINUS)


def arrow(higher_is_better: bool | None) -> str:
    """Return the arrow that points to better values; nothing when neither direction is better."""
    return "" if higher_is_better is None else "↑" if higher_is_better else "↓"


def excerpt(text: str, length: int = 96) -> str:
    """Return the beginning of a text on one line."""
    line = " ".join(text[: 4 * length].split())
    return line if len(line) <= length and len(text) <= 4 * length else line[: length - 1].rstrip() + "…"


def named(text: str) -> str:
    """Return a name that can be seen: of nothing but white space, each character becomes its sign."""
    return text if text.strip() else "".join(_BLANKS.get(character, "␣") for character in text) or "∅"


def facts(*sources: Mapping[str, object] | Iterable[tuple[str, object]]) -> dict[str, str]:
    """Join mappings into one of strings, in order, leaving out what is empty."""
    joined = {str(key): _fact(value) for source in sources for key, value in dict(source).items()}
    return {key: value for key, value in joined.items() if value}


def data_uri(image: bytes) -> str:
    """Return an image as a `data:` address.

    Raises:
        InputError: it is neither PNG nor SVG.
    """
    for start, media_type in _MEDIA_TYPES:
        if image.startswith(start):
            return f"data:{media_type};base64,{base64.b64encode(image).decode('ascii')}"
    raise InputError(f"an embedded figure must be PNG or SVG; this one begins with {image[:8]!r}")


def safe_link(address: str) -> str:
    """Return an address that may stand in a link.

    Raises:
        InputError: it is not http, https or relative, for such an address could run code.
    """
    # Browsers skip white space and control characters in a scheme, so `java\nscript:` is one, too.
    squeezed = re.sub(r"[\s\x00-\x20]", "", address)
    scheme, colon, _ = squeezed.partition("/")[0].partition(":")
    if colon and scheme.lower() not in _LINK_SCHEMES:
        raise InputError(f"a link must be http, https or relative, not {address!r}")
    return squeezed


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("interpreto_mlops.visuals", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        raw_text=raw_text, number=number, signed=signed, share=share, arrow=arrow, excerpt=excerpt, data_uri=data_uri
    )
    environment.filters.update(compact=compact, named=named, safe_link=safe_link)
    return environment


def _finalize(value: Any) -> Any:
    return value if isinstance(value, Markup) else Markup(_escaped(visible(str(value))))


def _escaped(text: str) -> str:
    # A bare carriage return is read as a line feed; only its reference survives.
    return str(escape(text)).replace("\r", "&#13;")


def _fact(value: object) -> str:
    if value is None or isinstance(value, float):
        return "" if value is None else f"{value:g}".replace("-", MINUS)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {entry}" for name, entry in value.items())
    return str(value)
