"""Texts that attack the page they are shown on, and a reader that sees a page as a browser does."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np

from interpreto_mlops.attributions.results import Attribution, Target
from interpreto_mlops.text.granularity import sentence_spans, word_spans

PAYLOADS = (
    "<script>window.__pwned=1;alert(1)</script> good food",
    "</script><img src=x onerror=window.__pwned=1> bad",
    '"><svg onload=window.__pwned=1>',
    "' onmouseover='window.__pwned=1' style='position:fixed",
    "</style><style>*{display:none}</style>",
    "</title></textarea></bdi></span><iframe srcdoc='<script>parent.__pwned=1</script>'>",
    "{{7*7}} {% raw %} {# ${7*7} #} <%= 7*7 %>",
    "javascript:window.__pwned=1 &lt;b&gt; &amp; &#60;script&#62;",
    '<img src="http://127.0.0.1:9/leak.png"><link rel=stylesheet href=http://127.0.0.1:9/a.css>',
    "<!-- --!> <![CDATA[ <b> ]]> <plaintext>",
)
PLAIN = (
    "The food   was great,\n\tbut the\r\nwaiter was slow.\r",
    "emoji 😀 family 👨‍👩‍👧 flag 🇫🇷 accent e\u0301 and 中文字符 and العربية",
    "",
    "   \n ",
    "x" * 100_000,
    "costs $5 and $6, a_b^c \\frac{1}{2}",
)
TURNING = "pay \u202e001\u202c euros \u2066now\u2069 and \u202arest"
UNPRINTABLE = "nul \x00 bell \x07 escape \x1b[31m del \x7f next \x85 lone \ud800 and \udfff end"
HOSTILE = (*PAYLOADS, *PLAIN, TURNING, UNPRINTABLE)


def attribution(text: str, *, granularity: str = "word", seed: int = 0, **changes: object) -> Attribution:
    """An attribution of `text` with random scores, some of them zero, negative, and not a number."""
    spans = word_spans(text) if granularity == "word" else sentence_spans(text)
    rng = np.random.default_rng([seed, len(text)])
    scores = rng.normal(size=(1, len(spans))).round(3)
    scores[0, 3::5] = 0.0
    scores[0, 4::7] = np.nan
    values: dict[str, object] = {
        "text": text,
        "index": 0,
        "elements": tuple(text[start:end] for start, end in spans.tolist()),
        "spans": spans,
        "scores": scores,
        "targets": (Target(1, "positive"),),
        "output": np.array([1.5]),
        "baseline_output": np.array([-0.25]),
        "standard_error": np.abs(scores) / 10,
        "method": "occlusion",
        "parameters": {"granularity": granularity, "seed": seed},
        "checks": {"gap": 1e-5},
    }
    return Attribution(**{**values, **changes})  # type: ignore[arg-type]


def continued(prompt: str, continuation: str, **changes: object) -> Attribution:
    """Each word of a continuation explained by all before it, as a language model's attributions are."""
    text = prompt + continuation
    plain = attribution(text, standard_error=None)
    n, first = len(plain), int((plain.spans[:, 0] < len(prompt)).sum())
    scores = np.random.default_rng(n).normal(size=(n - first, n))
    for row in range(n - first):
        scores[row, first + row :] = np.nan
    targets = tuple(Target(i, plain.elements[first + i], positions=(first + i - 1,)) for i in range(n - first))
    given: dict[str, object] = {
        "scores": scores,
        "targets": targets,
        "output": np.zeros(n - first),
        "baseline_output": np.zeros(n - first),
        "standard_error": None,
        "boundary": len(prompt),
        "prompt_tokens": first,
        "of_token": np.arange(n),
    }
    return attribution(text, **{**given, **changes})


class Page(HTMLParser):
    """The elements of a page in order, each as [tag, attributes, text content]."""

    _VOID = frozenset({"meta", "img", "br", "link", "hr", "input", "base"})

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self._open: list[tuple[str, dict[str, str], list[str]]] = []
        self.feed(html)
        self.close()
        assert not self._open, f"not closed: {[element[0] for element in self._open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        element = (tag, {name: value or "" for name, value in attrs}, [])
        self.elements.append(element)
        if tag not in self._VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        opened = self._open.pop()[0]
        assert opened == tag, f"</{tag}> closes <{opened}>"

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element[2].append(data)

    def find(self, tag: str, css_class: str = "") -> list[tuple[dict[str, str], str]]:
        """Attributes and text content of the elements of that tag and class."""
        return [
            (attributes, "".join(text))
            for name, attributes, text in self.elements
            if name == tag and (not css_class or css_class in attributes.get("class", "").split())
        ]

    def texts(self) -> list[str]:
        """The content of every block that shows a raw text."""
        return [text for _, text in self.find("div", "text")]


ALLOWED_TAGS = frozenset(
    "html head meta title style body main header footer section nav h1 h2 h3 p div span b i small bdi mark a dl dt dd "
    "ul li table caption thead tbody tr th td details summary figure figcaption img pre code".split()
)


def assert_harmless(html: str) -> Page:
    """Assert that a page has no script, no handler, and nothing from outside, whatever text it shows."""
    page = Page(html)
    for tag, attributes, _ in page.elements:
        assert tag in ALLOWED_TAGS, tag
        assert not [name for name in attributes if name.startswith("on")], attributes
        assert attributes.get("src", "data:image/").startswith("data:image/"), attributes["src"]
        assert "url(" not in attributes.get("style", "")
        if tag not in ("a", "link"):
            assert "href" not in attributes
    styles = page.find("style")
    assert len(styles) == 1
    assert "url(" not in styles[0][1]
    assert "@import" not in styles[0][1]
    html.encode("utf-8")
    assert "\x00" not in html
    return page
