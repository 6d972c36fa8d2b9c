"""JSON that is nested without end."""

from __future__ import annotations

import json
import random
import time

import pytest

from interpreto_mlops.llm.nesting import MOST, check_nesting


def nested(value: object) -> int:
    """How deep the brackets of plain values stand in each other."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 0 if not isinstance(value, (dict, list)) else 1 + max(map(nested, inner), default=0)


def drawn(draw: random.Random, depth: int) -> object:
    """Values with brackets, quotes and backslashes in their strings."""
    if not depth:
        return "".join(draw.choice('[]{}"\\a') for _ in range(draw.randrange(9)))
    if draw.random() < 0.5:
        return [drawn(draw, depth - 1)]
    return {'{"[': drawn(draw, depth - 1), "x": 1}


@pytest.mark.parametrize("seed", range(20))
def test_what_counts_is_the_depth_and_not_what_stands_in_strings(seed):
    draw = random.Random(seed)
    value = drawn(draw, MOST + seed % 3 - 1)
    text = json.dumps(value)
    if nested(value) > MOST:
        with pytest.raises(ValueError, match="nested too deeply"):
            check_nesting(text)
    else:
        check_nesting(text)


@pytest.mark.parametrize("text", ["", "]" * 1000, '"' + "[" * 1000, "a [1] b", '{"a": "\\\\"}'])
def test_what_is_no_json_is_for_others_to_refuse(text):
    check_nesting(text)


def test_a_long_text_takes_no_time():
    start = time.perf_counter()
    check_nesting(json.dumps(["\\" * 10**6, "x" * 10**7]))
    with pytest.raises(ValueError, match="nested"):
        check_nesting("[" * 10**7)
    assert time.perf_counter() - start < 5
