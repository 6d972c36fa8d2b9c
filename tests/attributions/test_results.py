"""Attribution sets: frames, saving, and what a damaged folder says."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from interpreto_mlops.attributions import AttributionSet, KernelShap, Occlusion
from interpreto_mlops.errors import DataError
from tests.visuals.hostile import attribution, continued


def test_the_frame_has_one_row_for_each_text_target_and_element(tiny_model, texts):
    explanations = KernelShap(tiny_model())(texts, targets=[[0, 1]] * len(texts))
    frame = explanations.to_frame()
    assert len(frame) == sum(2 * len(item.elements) for item in explanations)
    for item in explanations:
        part = frame[(frame["text_index"] == item.index) & (frame["target_id"] == 1)]
        np.testing.assert_array_equal(part["score"], item.scores[1])
        np.testing.assert_array_equal(part["standard_error"], item.standard_error[1])
        assert part["element"].tolist() == list(item.elements)
        assert [item.text[a:b] for a, b in zip(part["start"], part["end"], strict=True)] == list(item.elements)


def test_a_slice_is_a_set_and_an_index_one_attribution(tiny_model, texts):
    explanations = Occlusion(tiny_model())(texts)
    assert isinstance(explanations[1:3], AttributionSet)
    assert [item.text for item in explanations[1:3]] == texts[1:3]
    assert explanations[-1].text == texts[-1]


def test_the_ranking_goes_from_high_to_low_with_ties_by_position(tiny_model):
    item = Occlusion(tiny_model())(["awful soup , not good"])[0]
    item.scores[0] = [1, 5, 1, 5, 0]
    assert item.ranking().tolist() == [1, 3, 0, 2, 4]


def test_an_empty_set_saves_and_loads(tmp_path):
    empty = AttributionSet([])
    assert AttributionSet.load(empty.save(tmp_path / "deep" / "folder")) == empty
    assert empty.to_frame().empty


def test_a_folder_without_a_set_is_named(tmp_path):
    with pytest.raises(DataError, match="no attribution set in"):
        AttributionSet.load(tmp_path)


def test_another_format_is_refused(tiny_model, tmp_path):
    folder = Occlusion(tiny_model())(["good food"]).save(tmp_path)
    header = json.loads((folder / "attributions.json").read_text())
    (folder / "attributions.json").write_text(json.dumps({**header, "format": "attribution-set/9"}))
    with pytest.raises(DataError, match="'attribution-set/9', not 'attribution-set/2'"):
        AttributionSet.load(folder)


def test_sets_that_were_joined_save_and_load(tiny_model, tmp_path):
    first, second = (Occlusion(tiny_model())([text]) for text in ("good food", "a very cold awful soup"))
    joined = AttributionSet([*first, *second])
    assert AttributionSet.load(joined.save(tmp_path)) == joined


def test_an_attribution_is_shown_in_one_line(tiny_model):
    item = Occlusion(tiny_model())(["good food " * 9], targets=[[0, 1]], contrast=2)[0]
    assert repr(item) == (
        f"Attribution({('good food ' * 6)[:60] + '…'!r}: 18 elements, occlusion of LABEL_0 rather than LABEL_2, "
        "LABEL_1 rather than LABEL_2)"
    )
    assert "0 elements, occlusion of nothing" in repr(dataclasses.replace(item, elements=(), targets=()))


def test_of_a_hidden_text_with_a_continuation_the_hash_of_the_prompt_is_kept(tmp_path):
    items = [continued("once upon ", "a time there"), attribution("once upon ")]
    hidden = AttributionSet(items).hidden()
    prompt = hashlib.sha256(b"once upon ").hexdigest()
    assert [item.prompt_sha256 for item in hidden] == [prompt, None]
    assert [item.prompt_sha256 for item in items] == [None, None]
    folder = hidden.save(tmp_path)
    assert AttributionSet.load(folder) == hidden
    assert AttributionSet.load(folder)[0].hidden().prompt_sha256 == prompt
    header = folder / "attributions.json"
    assert "once" not in header.read_text()
    said = json.loads(header.read_text())
    for text in said["texts"]:
        del text["prompt_sha256"]
    header.write_text(json.dumps(said))
    old = AttributionSet.load(folder)
    assert [item.prompt_sha256 for item in old] == [None, None]
    assert (old[0].text_sha256, old[1]) == (hidden[0].text_sha256, hidden[1])
