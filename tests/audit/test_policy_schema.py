"""Policies: what is refused, and in which words."""

from __future__ import annotations

import hashlib

import pytest

from interpreto_mlops.audit.policies import load_policy, parse_policy
from interpreto_mlops.errors import InputError, UnknownNameError

THRESHOLD = "rules:\n- {rule: threshold, metric: deletion, max: 0.5}\n"


def test_a_policy_is_read_as_it_stands(tmp_path):
    content = "name: reviews\r\n" + THRESHOLD
    (tmp_path / "policy.yaml").write_bytes(content.encode())
    policy = load_policy(tmp_path / "policy.yaml")
    assert policy.name == "reviews"
    assert policy.sha256 == hashlib.sha256(content.encode()).hexdigest()
    (rule,) = policy.rules
    assert (rule.rule, rule.metric, rule.max, rule.min) == ("threshold", "faithfulness/deletion", 0.5, None)
    assert rule.title == "threshold: faithfulness/deletion"
    assert not policy.compares
    assert parse_policy("rules: [{rule: champion, metric: deletion}]").compares


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rules: []", "has no rules; list at least one"),
        ("name: empty", "has no rules"),
        ("rules: {}", "has no rules"),
        ("- rule: integrity", "must be a mapping with 'rules', not ["),
        ("", "must be a mapping with 'rules', not None"),
        ("rules: [integrity]", "rule 1 of the policy given must be a mapping with 'rule', not 'integrity'"),
        ("rules: [{rule: [a]}]", "kind of rule in rule 1"),
        ("rules: [{rule: integrity}, {rule: treshold}]", "rule 2 of the policy given: 'treshold'; known: 'evidence', "),
        ("rules: [{rule: integrity}]\nrule: x", "unknown key of the policy given 'rule'; known: 'name', 'rules'"),
        (
            "rules: [{rule: words, words: [she], topk: 3}]",
            "unknown key of the rule 'words' (rule 1 of the policy given) 'topk'; known: 'rule', 'name', 'methods'",
        ),
        ("rules: [{rule: threshold, metric: deletion}]", "give 'min', 'max' or both"),
        ("rules: [{rule: threshold, metric: deletion, min: 2, max: 1}]", "'min' 2.0 is above 'max' 1.0"),
        ("rules: [{rule: threshold, metric: deletion, max: .nan}]", "max: Input should be a finite number"),
        ("rules: [{rule: threshold, metric: deletion, max: .inf}]", "max: Input should be a finite number"),
        ("rules: [{rule: threshold, metric: deletion, max: 1" + 400 * "0" + "}]", "max: Input should be a finite"),
        ("rules: [{rule: threshold, metric: deletion, min: true}]", "min: Input should be a valid number, not True"),
        ("rules: [{rule: threshold, metric: deletion, min: '0.5'}]", "valid number, not '0.5'"),
        (
            "rules: [{rule: words, words: [no]}]",
            "words.0: Input should be a valid string, not False; write it in quotes",
        ),
        ("rules: [{rule: words, words: ['...']}]", "'...' holds no word, so that nothing could match it"),
        ("rules: [{rule: words, words: []}]", "words: List should have at least 1 item"),
        ("rules: [{rule: words, words: [she], allowed_share: 1.0}]", "allowed_share: Input should be less than 1"),
        ("rules: [{rule: words, words: [she], top: 0}]", "top: Input should be greater than or equal to 1, not 0"),
        (
            "rules: [{rule: champion, metric: deletion, min_texts: 2}]",
            "min_texts: Input should be greater than or equal",
        ),
        ("rules: [{rule: champion, metric: deletion, by: -1}]", "by: Input should be greater than or equal to 0"),
        ("rules: [{rule: evidence, within_days: 0}]", "within_days: Input should be greater than 0"),
        ("rules: [{rule: stability, min: -1}]", "min: Input should be greater than -1"),
        ('rules: [{rule: evidence, data: "x\' OR 1=1"}]', "data: String should match pattern"),
        ("rules: [{rule: integrity, rule: words}]", "gives 'rule' twice in one place"),
        ("rules:\n- {rule: threshold, metric: a, max: 0.1, max: 0.9}", "gives 'max' twice in one place; give it once"),
        ("a: &a [x]\nrules: [*a]", "refers to '*a'; write out what that stands for"),
        ("rules: [", "is no YAML: while parsing a flow node"),
        ("rules: !!python/object/apply:os.system ['true']", "is no YAML: could not determine a constructor"),
        ("? [a, b]\n: 1", "is no YAML: while constructing a mapping"),
        ("a: b\n---\nrules: []", "is no YAML"),
        (100_000 * "[", "the policy given is "),
        ("rules: [\x00]", "is no YAML"),
        ("name: 7\nrules: [{rule: integrity}]", "name: Input should be a valid string, not 7"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(text, words):
    with pytest.raises(InputError) as caught:
        parse_policy(text)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500


def test_an_unknown_key_is_named_with_those_that_are_known():
    with pytest.raises(UnknownNameError) as caught:
        parse_policy("rules: [{rule: integrity, strict: true}]")
    assert caught.value.given == "strict"
    assert caught.value.known == ("rule", "name")


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the policy '.*none\.yaml'"):
        load_policy(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="cannot read the policy"):
        load_policy(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot read the policy"):
        load_policy(tmp_path / "binary")
    (tmp_path / "large").write_text("#" * (2**20 + 1) + "\n" + THRESHOLD)
    with pytest.raises(InputError, match="larger than"):
        load_policy(tmp_path / "large")


def test_what_messages_quote_is_cut():
    with pytest.raises(InputError) as caught:
        parse_policy(f"rules: [{{rule: {'x' * 10_000}}}]")
    assert len(str(caught.value)) < 500
    with pytest.raises(InputError) as caught:
        parse_policy(f"rules: [{{rule: integrity, {'x' * 900}: 1}}]")
    assert len(str(caught.value)) < 500
