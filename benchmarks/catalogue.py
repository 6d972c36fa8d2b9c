"""The catalogue's named questions over a million attributions, and how fast they are written.

    python benchmarks/catalogue.py                          # SQLite, and a private PostgreSQL where the machine has one
    python benchmarks/catalogue.py --postgres postgresql://user@host/database

Words are drawn by Zipf's law, as in real text: the most frequent one is in most texts. Each question is asked several
times with other parameters, and the slowest answer counts; wall seconds, one process. A PostgreSQL that this script
starts runs without fsync, so its rates of writing are those of a machine whose disk is no limit.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import report
from sqlalchemy import insert, text

from interpreto_mlops.attributions.results import Attribution
from interpreto_mlops.audit.catalogue import Catalogue
from interpreto_mlops.audit.catalogue.log import append_to
from interpreto_mlops.audit.catalogue.tables import AttributionRow, ConceptRow, DictionaryRow, RunRow, VersionRow
from interpreto_mlops.audit.catalogue.writing import TOP_WORDS, bulk_insert, replace_run
from interpreto_mlops.models.objectives import Target

TEXTS, VOCABULARY = 1000, 30_000
BARS = {"sqlite": 1.0, "postgresql": 0.2}
RATE_BAR = 50_000

_CLASSES = (Target(0, "negative"), Target(1, "positive"))


def attributions(seed: int, count: int = TEXTS) -> Iterator[Attribution]:
    """A run's explanations: texts of 30 words, each for the class that it was given."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        places = np.minimum(rng.zipf(1.3, 30) - 1, VOCABULARY - 1)
        words = tuple(f"word{place}" for place in places)
        # Random words have no spans of interest; the catalogue does not look at them.
        spans = np.zeros((len(words), 2), dtype=np.int64)
        scores = rng.standard_normal((1, len(words)))
        target = _CLASSES[index % 2]
        output = np.zeros(1)
        yield Attribution(" ".join(words), index, words, spans, scores, (target,), output, output, None, "occlusion")


def fill(catalogue: Catalogue, rows: int) -> dict[str, float]:
    """Write `rows` attributions in runs of a thousand texts, and what goes with them; return the rates."""
    runs = max(1, rows // (TEXTS * TOP_WORDS))
    explanations = [list(attributions(seed)) for seed in range(2)]
    seconds = 0.0
    for key in range(1, runs + 1):
        start = time.perf_counter()
        with catalogue.database.writing() as connection:
            replace_run(connection, _run(key), {"faithfulness/deletion": 0.5}, explanations[key % 2])
        seconds += time.perf_counter() - start
        with catalogue.database.writing() as connection:
            connection.execute(insert(VersionRow).values({**_model(key), "name": "reviews", "version": key}))
    _fill_dictionaries(catalogue)
    _fill_log(catalogue, runs)
    if not catalogue.database.is_sqlite:
        with catalogue.database.engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("ANALYZE"))
    return {"whole runs": runs * TEXTS * TOP_WORDS / seconds, "rows alone": _rate(catalogue)}


def _rate(catalogue: Catalogue, count: int = 200_000) -> float:
    """Rows a second of one bulk insert of prepared rows, which is undone."""
    with catalogue.database.writing() as connection:
        row = connection.execute(insert(RunRow).values(_run(10**6)).returning(RunRow.id)).scalar_one()
        common = {"run": row, "target_index": 0, "target": "positive", "generated": False, "score": 0.5}
        rows = [
            {**common, "place": i // TOP_WORDS, "rank": i % TOP_WORDS, "element": i % 30, "word": f"word{i % 9973}"}
            for i in range(count)
        ]
        start = time.perf_counter()
        bulk_insert(connection, AttributionRow, rows)
        seconds = time.perf_counter() - start
        connection.rollback()
    return count / seconds


def _model(key: int) -> dict[str, Any]:
    return {"model_id": f"m-{key:032x}", "store": "benchmark"}


def _run(key: int) -> dict[str, Any]:
    times = {"started_at": "2026-01-01T00:00:00.000000Z", "ended_at": "2026-01-01T00:01:00.000000Z"}
    row = {"run_id": f"{key:032x}", "experiment_id": "1", "kind": "attributions", "status": "FINISHED", **times}
    return {**row, **_model(key), "model_uri": f"models:/reviews/{key}", "method": "occlusion"}


def _fill_dictionaries(catalogue: Catalogue, count: int = 200, concepts: int = 1024) -> None:
    with catalogue.database.writing() as connection:
        bulk_insert(
            connection,
            DictionaryRow,
            ({**_model(key), "name": "d", "base_sha256": base(key // 10)} for key in range(count)),
        )
        rows = ((key, number) for key in range(count) for number in range(concepts))
        bulk_insert(
            connection,
            ConceptRow,
            (
                {
                    "model_id": f"m-{key:032x}",
                    "concept": number,
                    "label": f"label {key * number % 7}",
                    "origin": "words",
                }
                for key, number in rows
            ),
        )


def base(number: int) -> str:
    """The content hash of a base model."""
    return hashlib.sha256(str(number).encode()).hexdigest()


def _fill_log(catalogue: Catalogue, versions: int, count: int = 5000) -> None:
    with catalogue.database.writing() as connection:
        for number in range(count):
            after = f'{{"uri":"models:/reviews/{number % versions + 1}"}}'
            entry = {"actor": "a", "action": "move_alias", "object": f"models:/reviews{number % 100}@champion"}
            append_to(connection, {**entry, "store": None, "before": None, "after": after})


def asked(runs: int) -> dict[str, list[dict[str, Any]]]:
    """The questions, each with the parameters that it is asked with: the most frequent word, and rare ones."""
    versions = [f"models:/reviews/{number}" for number in sorted({1, max(1, runs // 2), runs})]
    words = [f"word{number}" for number in (0, 1, 10, 500, VOCABULARY + 1)]
    return {
        "texts_with_word": [
            {"word": word, "version": version, "target": "positive", "k": k}
            for word in words
            for version in versions
            for k in (5, 20)
        ],
        "changed_labels": [{"before": f"models:/m-{n:032x}", "after": f"models:/m-{n + 1:032x}"} for n in range(5)],
        "dictionaries_of": [{"sha256": base(number)} for number in range(5)],
        "alias_moves": [{"name": f"reviews{number}", "alias": "champion"} for number in range(5)],
    }


def measure(catalogue: Catalogue, rows: int) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Return the rates of writing, and the median and slowest seconds of each question."""
    rates = fill(catalogue, rows)
    times: dict[str, list[float]] = {}
    for name, parameters in asked(max(1, rows // (TEXTS * TOP_WORDS))).items():
        for given in parameters:
            start = time.perf_counter()
            catalogue.ask(name, **given)
            times.setdefault(name, []).append(time.perf_counter() - start)
    return rates, {name: (float(np.median(each)), max(each)) for name, each in times.items()}


def table(kind: str, rates: dict[str, float], times: dict[str, tuple[float, float]]) -> str:
    """What was measured on a database, as a markdown table."""
    bar = BARS[kind]
    rows = [
        (name, f"{1000 * median:.1f} ms", f"{1000 * worst:.1f} ms", f"≤ {1000 * bar:.0f} ms: {_met(worst <= bar)}")
        for name, (median, worst) in times.items()
    ]
    for name, rate in rates.items():
        judged = f"≥ {RATE_BAR:,}: {_met(rate >= RATE_BAR)}" if kind == "postgresql" else ""
        rows.append((f"written, {name}", "", f"{rate:,.0f} rows a second", judged))
    return report.table((kind, "median", "slowest", "bar"), rows)


def _met(met: bool) -> str:
    return "yes" if met else "**no**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--postgres", help="address of an empty database, instead of a private PostgreSQL")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Catalogue.connect(f"sqlite:///{folder}/c.db") as catalogue:
        print(table("sqlite", *measure(catalogue, options.rows)), "\n", sep="")
    with ExitStack() as stack:
        address = options.postgres
        if address is None:
            sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
            from tests.postgres import cluster, fresh_database

            try:
                server = stack.enter_context(cluster())
            except LookupError as error:
                print(error)
                return
            address = stack.enter_context(fresh_database(server))
        catalogue = stack.enter_context(Catalogue.connect(address))
        print(table("postgresql", *measure(catalogue, options.rows)))


if __name__ == "__main__":
    main()
