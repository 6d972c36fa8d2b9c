"""The corpus of docstrings: real, readable, the same each time, names masked, nothing imported for it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from interpreto_mlops.errors import DataError, InputError, UnknownNameError
from interpreto_mlops.text import library_docs as corpus
from interpreto_mlops.text.datasets import load_dataset
from interpreto_mlops.text.library_docs import LABELS, MAX_PER_LABEL, library_docs

NAMES = "matplotlib|mlflow|networkx|pandas|scipy|sqlalchemy|torch|numpy|sklearn|scikit|sympy|alembic|pyplot|databricks"
PROSE = "{topic} are what this one sentence is about, and it has words enough to be kept because of {topic}."


@pytest.fixture
def fake_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two importable packages, `alpha` and `beta`, that fail when they are imported."""
    for name in ("alpha", "beta"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(corpus, "LABELS", ("alpha", "beta"))
    corpus._all_paragraphs.cache_clear()
    yield tmp_path
    corpus._all_paragraphs.cache_clear()


def write(folder: Path, name: str, docstring: str, file: str = "module.py", code: str = "") -> None:
    path = folder / name / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'r"""{docstring}"""\n{code}')


def texts_of(label: str) -> list[str]:
    data = library_docs("all")
    return [text for text, given in zip(data.texts, data.labels or (), strict=True) if given == label]


def test_thousands_of_paragraphs_of_every_library() -> None:
    counts = Counter(library_docs("all").labels)
    assert set(counts) == set(LABELS)
    assert sum(counts.values()) > 4000
    assert max(counts.values()) <= MAX_PER_LABEL
    assert min(counts.values()) > 0.4 * max(counts.values())


def test_every_text_is_prose_of_moderate_length() -> None:
    for text in library_docs("all").texts:
        assert 16 <= len(text.split()) <= 80, text
        assert text[0].isupper()
        assert text[-1] in ".!?:"
        assert not re.search(r">>>|^\.\. |::$|:(?:class|func|meth|ref|math):|\\|https?://|``", text), text


def test_no_text_names_a_library() -> None:
    for text in library_docs("all").texts:
        assert not re.search(NAMES, text, re.IGNORECASE), text
        assert not re.search(r"(?<![\w.])(?:np|pd|plt|mpl|nx|sa|sp)(?!\w)", text), text


def test_train_and_test_share_no_text_and_make_up_all() -> None:
    train, test, everything = (library_docs(split) for split in ("train", "test", "all"))
    assert len(set(everything.texts)) == len(everything)
    assert not set(train.texts) & set(test.texts)
    assert sorted(train.texts + test.texts) == sorted(everything.texts)
    assert 0.12 < len(test) / len(everything) < 0.18


def test_texts_of_the_two_splits_do_not_open_alike() -> None:
    """A template filled in twice would be learnt by heart in train and found again in test."""

    def opening(label: str, text: str) -> tuple[str, ...]:
        return (label, *re.sub(r"[^a-z]+", " ", text.lower()).split()[:8])

    sets = [{opening(*row) for row in zip(data.labels or (), data.texts, strict=True)} for data in splits()]
    assert not sets[0] & sets[1]


def splits() -> tuple[corpus.TextDataset, corpus.TextDataset]:
    return library_docs("train"), library_docs("test")


def test_max_per_label_caps_each_label_of_the_split() -> None:
    few = library_docs("test", max_per_label=20)
    assert Counter(few.labels) == dict.fromkeys(LABELS, 20)
    assert set(few.texts) <= set(library_docs("test").texts)


def test_labels_are_mixed_so_that_the_first_rows_are_a_fair_sample() -> None:
    assert set(library_docs("test").head(60).labels or ()) == set(LABELS)


def test_another_process_builds_the_same_corpus_and_imports_no_library_for_it() -> None:
    code = """
import sys
from interpreto_mlops.text.library_docs import LABELS, library_docs
before = set(sys.modules)
print(library_docs("train").digest, library_docs("test").digest)
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before} & set(LABELS)))
print(*sorted(set(LABELS) - before))
"""
    command = [sys.executable, "-W", "error", "-c", code]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr
    digests, imported, not_there_before = done.stdout.splitlines()
    assert digests.split() == [data.digest for data in splits()]
    assert imported == ""
    assert not_there_before, "every library was imported beforehand, so that nothing was shown"


def test_it_is_known_by_name() -> None:
    assert load_dataset("library_docs", split="test") == library_docs("test")


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"'dev'; known: 'train', 'test', 'all'"):
        library_docs("dev")


def test_a_cap_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1, not 0"):
        library_docs("train", max_per_label=0)


def test_fewer_than_two_libraries_are_refused(monkeypatch: pytest.MonkeyPatch, fake_libraries: Path) -> None:
    write(fake_libraries, "alpha", PROSE.format(topic="Graphs"))
    with pytest.raises(DataError, match="at least two of alpha, beta; docstrings were found in alpha: "):
        library_docs()
    corpus._all_paragraphs.cache_clear()
    monkeypatch.setattr(corpus, "LABELS", ("no_such_library", "nor_this_one"))
    with pytest.raises(DataError, match="found in none"):
        library_docs()


def test_docstrings_are_read_without_running_the_library(fake_libraries: Path) -> None:
    method = PROSE.format(topic="Methods")
    private = PROSE.format(topic="Hidden things")
    code = f'''
class Shape:
    def area(self):
        """{method}"""

    def _area(self):
        """{private}"""

raise RuntimeError("run")
'''
    write(fake_libraries, "alpha", PROSE.format(topic="Modules"), code=code)
    write(fake_libraries, "beta", PROSE.format(topic="Tables"))
    assert sorted(texts_of("alpha")) == sorted([PROSE.format(topic="Modules"), method])


def test_what_is_not_prose_is_left_out(fake_libraries: Path) -> None:
    kept = (
        "Every ``matrix`` that :func:`~numpy.linalg.inv` takes *must* be square, see `the guide <https://a.b>`_\n"
        "for the reason why this is so [1]_."
    )
    docstring = f"""Too short.

{kept}

Introduce a block of code that follows this paragraph of prose, which is itself long enough to be kept::

    This line is code although it reads as if it were a sentence of prose with more than sixteen words in it.

Parameters
----------
x : array of numbers with a very long description on the very same line so that it has words enough here
    The description stands deeper than its name and type and so it is not a paragraph of its own in this block.

>>> This prompt is followed by words enough to be a paragraph but it is an example of code that one can run.

- This item of a list is long enough to be a paragraph but it is an item and not running text of a docstring.

.. note:: This directive is long enough to be a paragraph but it is markup and not running text of a docstring.

The formula :math:`\\alpha` is written in LaTeX and a paragraph that has LaTeX in it is not readable as plain text.

without a capital at its start this paragraph may well be the tail of something else and so it is not kept at all.
"""
    write(fake_libraries, "alpha", docstring)
    write(fake_libraries, "beta", PROSE.format(topic="Beta"))
    assert sorted(texts_of("alpha")) == [
        "Every matrix that library takes must be square, see the guide for the reason why this is so.",
        "Introduce a block of code that follows this paragraph of prose, which is itself long enough to be kept:",
    ]


def test_repeats_are_dropped(fake_libraries: Path) -> None:
    boilerplate = PROSE.format(topic="Licences")
    write(fake_libraries, "alpha", boilerplate)
    write(fake_libraries, "beta", boilerplate.replace("This", "this", 1).capitalize() + "\n\n" + first_and_repeat())
    write(
        fake_libraries,
        "alpha",
        "Alpha keeps a text of its own, since a library needs one to be among the labels here.",
        "b.py",
    )
    assert texts_of("alpha") == [
        "Alpha keeps a text of its own, since a library needs one to be among the labels here."
    ]
    assert len(texts_of("beta")) == 1


def first_and_repeat() -> str:
    text = "Version {n} of the format stores each block of the file behind a header of {n} bytes that gives its length."
    return "\n\n".join(text.format(n=n) for n in (1, 2))


def test_tests_and_broken_files_are_not_read(fake_libraries: Path) -> None:
    write(fake_libraries, "alpha", PROSE.format(topic="Graphs"))
    write(fake_libraries, "beta", PROSE.format(topic="Tables"))
    write(
        fake_libraries,
        "beta",
        "In a folder of tests, sentences say what is tested, which is not what a library is about.",
        "tests/a.py",
    )
    write(
        fake_libraries,
        "beta",
        "In a file that does not parse there may be sentences as well, and nobody can read them.",
        "b.py",
        "def (",
    )
    (fake_libraries / "beta" / "c.py").write_bytes(b'"""\xff\xfe"""\n')
    assert texts_of("beta") == [PROSE.format(topic="Tables")]


@pytest.mark.parametrize(
    ("written", "masked"),
    [
        ("call torch.nn.functional.relu, not np.maximum", "call library, not library"),
        ("PyTorch's tensors", "library's tensors"),
        ("SQLAlchemy-like and scikit-learn's", "library-like and library's"),
        ("MLFLOW_TRACKING_URI, matplotlibrc", "library, library"),
        ("an NP-hard problem in nx.", "an NP-hard problem in library."),
        ("the expand option, a pdf, a plot", "the expand option, a pdf, a plot"),
    ],
)
def test_names_are_masked(written: str, masked: str) -> None:
    assert corpus._NAME.sub(corpus.MASK, written) == masked
