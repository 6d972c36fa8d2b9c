"""A text classification corpus without a download: paragraphs of installed libraries' docstrings, by library."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

from interpreto_mlops.errors import DataError, InputError, UnknownNameError
from interpreto_mlops.text.datasets import DATASETS, TextDataset

LABELS = ("matplotlib", "mlflow", "networkx", "pandas", "scipy", "sqlalchemy", "torch")
"""The libraries read: each is there wherever this package is, because it or one of its requirements needs it."""

SPLITS = ("train", "test", "all")

MAX_PER_LABEL = 1000
"""Paragraphs kept of each library at most, so that the labels are nearly balanced."""

TEST_SHARE = 0.15

MASK = "library"
"""The word that stands where a text names a library."""

_SOURCE_BYTES = 4_000_000
_RAW_PER_LABEL = 1250
_WORDS = range(16, 81)
_LETTERS_SHARE = 0.93
_OPENING_WORDS = 7

_SKIPPED_FOLDERS = frozenset({"test", "tests", "testing", "vendor", "_vendor", "externals", "extern", "node_modules"})

# A name goes with whatever is glued to it: `torch.nn.Linear`, `mlflow_run`, `SymPy's`, `scikit-learn`. Short aliases
# are masked as they are written in code only: "NP-hard" is a word of graph theory.
_NAME = re.compile(
    r"(?<![\w.])(?:[\w.]*?(?i:matplotlib|pyplot|pylab|mpl_toolkits|mlflow|databricks|networkx|numpy|pandas|scipy|scikit|sklearn"
    r"|sqlalchemy|alembic|sympy|torch|hugging ?face|transformers)\w*(?:-learn|-image)?(?:\.\w+)*"
    r"|(?:mpl|plt|nx|np|pd|sp|sa|orm)(?:\.\w+)+|(?:mpl|plt|nx|np|pd|sp|sa)\b)"
)
_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{0,2}")
_ROLE = re.compile(r":[a-zA-Z][\w:+.-]*:`[~!.]*(?:_\w+\.)*([^`]*?)(?:\s*<[^`>]*>)?`")
_FOOTNOTE = re.compile(r"\s*,?\s*\[(?:\d+|#\w*)\]_?")
_MARKUP = re.compile(
    r"`+(?:__?(?!\w))?|(?:(?<=[\s(\"\'\[`])|^)(?:[~!.]+(?=[A-Za-z])|[*|]{1,2}(?=[\w(]))"
    r"|(?<=[\w)])[*|]{1,2}(?![A-Za-z0-9*])_?|(?<=\w)(?<!_)_(?=[\s.,;:)]|$)"
)
_NOT_PROSE = re.compile(
    r"\s*(?:>>>|\.\.(?:\s|\.|$)|:[\w ]+:|[-*+#|=~]\s|[-=~^+*#|`]{3,}|\(?\w{1,2}[.)]\s|[\w.]+\s*=\s|[%$@{<]"
    r"|\w+\s?:\s*$|[\w*, ]+ : |[A-Z][a-z]+ ?[-:]{2,})"
)


@dataclass(frozen=True)
class _Paragraph:
    text: str
    label: str

    @property
    def rank(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def in_test(self) -> bool:
        # The end of the hash decides the split and its start the order: neither depends on the other.
        return int(self.rank[-8:], 16) < TEST_SHARE * 16**8


@DATASETS.register("library_docs")
def library_docs(split: str = "test", *, max_per_label: int = MAX_PER_LABEL) -> TextDataset:
    """Return paragraphs of the docstrings of installed libraries, labelled with the library, its names masked.

    The same installed versions give the same data set. A paragraph is never in both train and test.

    Arguments:
        split: `train`, `test` (15 % of the paragraphs, chosen by a hash of the text) or `all`.
        max_per_label: paragraphs of each library at most, in the split returned; no more than the default are kept.

    Raises:
        UnknownNameError: there is no such split.
        InputError: `max_per_label` is not positive.
        DataError: the sources of fewer than two of the libraries are installed.
    """
    if split not in SPLITS:
        raise UnknownNameError("split of 'library_docs'", split, SPLITS)
    if max_per_label < 1:
        raise InputError(f"max_per_label must be at least 1, not {max_per_label!r}")
    wanted = (p for p in _all_paragraphs() if split == "all" or p.in_test == (split == "test"))
    rows = list(_at_most(max_per_label, wanted))
    return TextDataset(
        "library_docs",
        tuple(row.text for row in rows),
        tuple(row.label for row in rows),
        f"docstrings of installed libraries, split {split!r}",
    )


@lru_cache(maxsize=1)
def _all_paragraphs() -> tuple[_Paragraph, ...]:
    """Return the paragraphs of all libraries, each text once, mixed in the order of their hashes."""
    found = {label: folder for label in LABELS if (folder := _folder_of(label)) is not None}
    texts = {label: list(islice(_library_paragraphs(folder), _RAW_PER_LABEL)) for label, folder in found.items()}
    mixed = sorted(_without_repeats(texts), key=lambda paragraph: paragraph.rank)
    kept = tuple(_at_most(MAX_PER_LABEL, mixed))
    if len({paragraph.label for paragraph in kept}) < 2:
        raise DataError(
            f"the corpus 'library_docs' needs the sources of at least two of {', '.join(LABELS)}; "
            f"docstrings were found in {', '.join(sorted({p.label for p in kept})) or 'none'}: install them with pip"
        )
    return kept


def _at_most(cap: int, paragraphs: Iterable[_Paragraph]) -> Iterator[_Paragraph]:
    counts: Counter[str] = Counter()
    for paragraph in paragraphs:
        counts[paragraph.label] += 1
        if counts[paragraph.label] <= cap:
            yield paragraph


def _without_repeats(texts: dict[str, list[str]]) -> Iterator[_Paragraph]:
    """Drop texts that two libraries share, and all but the first of those that are nearly the same within one."""
    libraries_of = Counter(key for in_library in texts.values() for key in {_letters(text) for text in in_library})
    for label, in_library in texts.items():
        seen: set[str] = set()
        for text in in_library:
            key = _letters(text)
            ends = {" ".join(words) for words in (key.split()[:_OPENING_WORDS], key.split()[-_OPENING_WORDS:])}
            if libraries_of[key] == 1 and not ends & seen:
                seen |= ends
                yield _Paragraph(text, label)


def _letters(text: str) -> str:
    return re.sub(r"[^a-z]+", " ", text.lower()).strip()


def _folder_of(library: str) -> Path | None:
    # For a top-level name, find_spec looks for the files and imports nothing.
    spec = importlib.util.find_spec(library)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _library_paragraphs(folder: Path) -> Iterator[str]:
    for docstring in _docstrings(folder):
        for lines in _prose_blocks(docstring):
            text = _plain(" ".join(line.strip() for line in lines))
            if _is_readable(text):
                masked = _NAME.sub(MASK, text)
                yield masked[0].upper() + masked[1:]


def _docstrings(folder: Path) -> Iterator[str]:
    """Yield the docstrings of a library's public modules, classes and functions, up to `_SOURCE_BYTES`."""
    left = _SOURCE_BYTES
    for path in _source_files(folder):
        source = path.read_bytes()
        yield from _docstrings_of(source)
        left -= len(source)
        if left < 0:
            return


def _source_files(folder: Path) -> list[Path]:
    """Return the library's modules, those with the largest share of quoted text first: parsing is what costs time."""
    share: dict[Path, float] = {}
    for path in folder.rglob("*.py"):
        if not _SKIPPED_FOLDERS & set(path.relative_to(folder).parts[:-1]):
            quoted = path.read_bytes().split(b'"""')[1::2]
            share[path] = sum(map(len, quoted)) / max(1, path.stat().st_size)
    return sorted((path for path in share if share[path] > 0), key=lambda path: (-share[path], path.as_posix()))


def _docstrings_of(source: bytes) -> Iterator[str]:
    try:
        # Old escapes such as "\d" in someone else's source are none of the user's business.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            open_nodes: list[ast.AST] = [ast.parse(source)]
    except (SyntaxError, ValueError):
        return
    while open_nodes:
        node = open_nodes.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and _is_public(node):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                open_nodes.extend(reversed(node.body))
        elif isinstance(node, ast.If):
            open_nodes.extend(reversed(node.body))


def _is_public(node: ast.AST) -> bool:
    name: str = getattr(node, "name", "")
    return not name.startswith("_") or name.endswith("__")


def _prose_blocks(docstring: str) -> Iterator[list[str]]:
    """Yield the paragraphs that are running text: one indentation, no table, list, prompt, field, code or directive."""
    code_above: int | None = None
    for block in re.split(r"\n\s*\n", docstring):
        lines = block.splitlines()
        indents = {len(line) - len(line.lstrip()) for line in lines}
        if code_above is not None and min(indents, default=0) > code_above:
            continue
        # What stands deeper below "::" is code.
        opens_code = block.rstrip().endswith("::") or lines[0].lstrip().startswith("..")
        code_above = min(indents) if opens_code else None
        if len(indents) == 1 and not any(_NOT_PROSE.match(line) for line in lines):
            yield lines


def _plain(text: str) -> str:
    """Take reStructuredText's markup out of a paragraph."""
    text = _LINK.sub(r"\1", _ROLE.sub(r"\1", text))
    text = _MARKUP.sub("", _FOOTNOTE.sub("", text))
    return re.sub(r"\s+", " ", re.sub(r"::(?=\s|$)", ":", text)).strip()


def _is_readable(text: str) -> bool:
    letters = sum(character.isalpha() or character in " ,.'" for character in text)
    return (
        len(text.split()) in _WORDS
        and text[0].isupper()
        and text[-1] in ".!?:"
        and not any(mark in text for mark in ("\\", "//", "www."))
        and text.isprintable()
        and letters >= _LETTERS_SHARE * len(text)
    )
