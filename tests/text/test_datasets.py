"""Data sets from files: formats, columns, and one clear sentence for each thing that can be wrong."""

from __future__ import annotations

import pandas as pd
import pytest

from interpreto_mlops.errors import DataError, InputError
from interpreto_mlops.text.datasets import TextDataset, load_dataset

ROWS = pd.DataFrame({"text": ["good, food", 'a "quoted"\nline', "NA"], "label": ["1", "0", "1"]})


def write(folder, ending):
    path = folder / f"reviews{ending}"
    if ending == ".csv":
        ROWS.to_csv(path, index=False)
    elif ending == ".tsv":
        ROWS.to_csv(path, index=False, sep="\t")
    elif ending == ".jsonl":
        ROWS.to_json(path, orient="records", lines=True)
    else:
        ROWS.to_parquet(path)
    return path


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_rows_and_digest(tmp_path, ending):
    data = load_dataset(write(tmp_path, ending), label_column="label")
    assert data.texts == tuple(ROWS["text"])
    assert data.labels == tuple(ROWS["label"])
    assert data.name == "reviews"
    assert data.digest == TextDataset("other", tuple(ROWS["text"]), tuple(ROWS["label"])).digest


def test_the_digest_sees_every_row_and_every_border():
    base = TextDataset("d", ("ab", "c")).digest
    assert len(base) == 32
    others = [TextDataset("d", texts).digest for texts in (("a", "bc"), ("c", "ab"), ("ab", "c", ""), ("ab", "d"))]
    assert len({base, *others}) == 5
    assert TextDataset("d", ("ab", "c"), ("0", "1")).digest != TextDataset("d", ("ab", "c"), ("1", "0")).digest


def test_a_column_that_is_not_there_names_those_that_are(tmp_path):
    with pytest.raises(DataError, match="no column 'review'; its columns are 'text', 'label'"):
        load_dataset(write(tmp_path, ".csv"), text_column="review")


@pytest.mark.parametrize("content", ["", "text,label\n"])
def test_an_empty_file(tmp_path, content):
    path = tmp_path / "empty.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=r"is empty|has no rows"):
        load_dataset(path)


def test_an_unknown_ending_names_the_known(tmp_path):
    path = tmp_path / "reviews.xlsx"
    path.write_text("x")
    with pytest.raises(DataError, match=r"must be one of \.csv, \.json, \.jsonl, \.parquet, \.tsv"):
        load_dataset(path)


def test_a_missing_file_names_the_data_sets(tmp_path):
    with pytest.raises(DataError, match="there is no data file"):
        load_dataset(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("ending", "content"), [(".parquet", "no parquet"), (".jsonl", "{not json"), (".jsonl", "[1]"), (".csv", 'a\n"x')]
)
def test_a_broken_file_is_one_sentence(tmp_path, ending, content):
    path = tmp_path / f"broken{ending}"
    path.write_text(content)
    with pytest.raises(DataError, match=r"cannot read the data file|has no column 'text'") as caught:
        load_dataset(path)
    assert "\n" not in str(caught.value)


def test_head_keeps_name_and_labels_and_refuses_nothing():
    data = TextDataset("d", ("a", "b", "c"), ("0", "1", "0"))
    assert data.head(2) == TextDataset("d", ("a", "b"), ("0", "1"))
    assert data.head(None) is data
    with pytest.raises(InputError, match="at least 1, not 0"):
        data.head(0)


def test_labels_of_another_length_are_refused():
    with pytest.raises(DataError, match="2 texts but 1 labels"):
        TextDataset("d", ("a", "b"), ("0",))
