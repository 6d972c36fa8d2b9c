"""Words that must not be among those that speak most for a class."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from interpreto_mlops.attributions.results import Attribution, Target
from interpreto_mlops.audit.catalogue.texts import hidden_name
from interpreto_mlops.audit.policies.evidence import Evidence
from interpreto_mlops.audit.policies.pieces import Piece
from interpreto_mlops.audit.policies.schema import WordsRule
from interpreto_mlops.audit.policies.selecting import chosen, missing, nothing, unknown
from interpreto_mlops.audit.policies.terms import (
    Span,
    hashed_terms,
    is_hash,
    is_punctuation,
    occurrences,
    term_of,
    words_of,
)
from interpreto_mlops.audit.policies.threshold_rules import about
from interpreto_mlops.audit.policies.verdicts import Outcome, RuleVerdict, Verdict, combine
from interpreto_mlops.tracking import schema

_WHAT = "attribution of words or tokens"
# In longer elements a word may stand without weighing anything.
_GRAINS = ("word", "token", "all_tokens")
_TOLD = 10
_KEPT = 100


@dataclass(frozen=True)
class Hit:
    """A forbidden word among those that speak most for a class.

    Arguments:
        word: as the policy has it.
        text_index: of the text, in its data set.
        class_name: for which it speaks.
        rank: among the elements of the text, 1 being the first.
        score: of the element.
    """

    word: str
    text_index: int
    class_name: str
    rank: int
    score: float

    def to_dict(self) -> dict[str, object]:
        """Return plain data."""
        return dict(vars(self))


@dataclass
class _Found:
    """What the texts of a run say.

    Arguments:
        judged: how many texts have a score for each class.
        tested: in how many of these texts each word stands where it could have had a score.
        with_any: in how many of them one of the words does.
        unreadable: how many are hidden behind hashes of less than words.
        hashed: how many are hidden behind hashes of words.
        hits: for each class and each of its texts with one.
        shown: what each class is called in the report.
    """

    judged: Counter[str] = field(default_factory=Counter)
    tested: Counter[str] = field(default_factory=Counter)
    with_any: int = 0
    unreadable: int = 0
    hashed: int = 0
    hits: dict[str, dict[int, list[Hit]]] = field(default_factory=lambda: defaultdict(dict))
    shown: dict[str, str] = field(default_factory=dict)


def judge_words(rule: WordsRule, evidence: Evidence) -> RuleVerdict:
    """Judge whether a forbidden word is among the elements that speak most for a class, in any run.

    A run passes where the share of texts with one is within what is allowed, for every class, and where the words stand
    in enough of the texts for that to mean something.
    """
    pieces = [piece for piece in chosen(evidence, rule, "attributions") if piece.n_texts]
    usable = [piece for piece in pieces if piece.parameters.get("granularity") in _GRAINS]
    outcomes = [_judged(rule, evidence, piece) for piece in usable]
    outcomes += missing(evidence, rule, usable, _WHAT)
    # Where there is nothing else, that is said.
    outcomes += unknown(evidence) if outcomes else []
    return combine(rule, outcomes, nothing(evidence, rule, _WHAT))


def _judged(rule: WordsRule, evidence: Evidence, piece: Piece) -> Outcome:
    found = _look(rule, evidence, piece)
    places = tuple(piece.place(path) for path in schema.ATTRIBUTIONS_FILES)
    judged = {found.shown[name]: count for name, count in found.judged.items()}
    facts = {**about(piece), "texts_of_class": judged, "texts_with_word": dict(found.tested)}
    hits = [hit for texts in found.hits.values() for own in texts.values() for hit in own]
    facts |= {"hits": [hit.to_dict() for hit in hits[:_KEPT]], "n_hits": len(hits)}
    for name, texts in found.hits.items():
        share = len(texts) / found.judged[name]
        if share > rule.allowed_share:
            return Outcome(
                Verdict.FAILED, _said(rule, piece, found.shown[name], texts, found.judged[name]), places, facts
            )
    if found.unreadable:
        why = (
            f"{found.unreadable} texts of {piece.title} are hidden, and what was explained of them are not whole words"
        )
        return Outcome(Verdict.UNDECIDED, why, places, facts)
    if found.hashed and (unsure := [word for word in rule.words if not word.isascii()]):
        why = (
            f"{found.hashed} texts of {piece.title} are hidden, and {unsure[0]!r} can be written in several ways, which"
        )
        return Outcome(Verdict.UNDECIDED, f"{why} have hashes of their own", places, facts)
    unjudged = [name for name in rule.classes or () if not found.judged[name]]
    if unjudged or not found.judged:
        known = ", ".join(map(repr, sorted(judged)[:_TOLD])) or "none"
        which = f"the class {unjudged[0]!r}" if unjudged else "any class"
        why = f"{piece.title} explains no text of {which}; it explains {known}"
        return Outcome(Verdict.UNDECIDED, why, places, facts)
    if found.with_any < rule.occurs_in:
        why = f"one of the words stands in {found.with_any} of the texts of {piece.title}, and in {rule.occurs_in} must"
        return Outcome(Verdict.UNDECIDED, f"{why} one stand for that to be a test", places, facts)
    return Outcome(Verdict.PASSED, _clean(rule, piece, found), places, facts)


def _said(rule: WordsRule, piece: Piece, name: str, texts: Mapping[int, list[Hit]], judged: int) -> str:
    counts = Counter(hit.word for hits in texts.values() for hit in {hit.word: hit for hit in hits}.values())
    words = ", ".join(f"{word!r} (in {count})" for word, count in counts.most_common(_TOLD))
    where = ", ".join(str(hits[0].text_index) for hits in list(texts.values())[:_TOLD])
    more = f" and {len(texts) - _TOLD} more" if len(texts) > _TOLD else ""
    allowed = f"{rule.allowed_share:.1%} are allowed"
    return (
        f"among the {rule.top} elements that speak most for {name!r} stands {words}, in {len(texts)} of {judged} texts "
        f"of {piece.title}, where {allowed}: the texts {where}{more}"
    )


def _clean(rule: WordsRule, piece: Piece, found: _Found) -> str:
    texts = sum(found.judged.values())
    untested = [word for word in rule.words if not found.tested[word]]
    said = f"{piece.title} has none of the words among the {rule.top} elements that speak most, in {texts} explanations"
    if any(found.hits.values()):
        said = f"{piece.title} has the words in no more texts than {rule.allowed_share:.1%} of a class's"
    if untested:
        said += f"; {len(untested)} of the {len(rule.words)} words stand in none of its texts, {untested[0]!r} for one"
    return said


def _look(rule: WordsRule, evidence: Evidence, piece: Piece) -> _Found:
    found, whole = _Found(), piece.parameters.get("granularity") == "word"
    for place, item in enumerate(evidence.explanations(piece).explanations):
        names = [target.name for target in item.targets]
        rows = [row for row, name in enumerate(names) if name in (rule.classes or names) and item.valid[row].any()]
        if not rows:
            continue
        if is_hash(item.text) and not whole:
            found.unreadable += 1
            continue
        found.hashed += is_hash(item.text)
        spans = dict(_spans(item, rule.words))
        found.tested.update(spans.keys())
        found.with_any += bool(spans)
        found.judged.update({names[row] for row in rows})
        found.shown |= {names[row]: _shown(item.targets[row], evidence) for row in rows}
        for row in rows:
            if hits := list(_hits(rule, item, row, spans, found.shown[names[row]])):
                # Sets that were joined may have an index twice; the place is unique.
                found.hits[names[row]].setdefault(place, []).extend(hits)
    return found


def _shown(target: Target, evidence: Evidence) -> str:
    """Return what a target is called; names that hold words of texts are hidden with the texts."""
    is_text = target.is_text and not is_hash(target.name)
    return hidden_name(target.name) if is_text and evidence.hides_texts else target.name


def _spans(item: Attribution, terms: Sequence[str]) -> Iterator[tuple[str, list[Span]]]:
    """Yield the words that stand where an element has a score, and where each does."""
    hidden = is_hash(item.text)
    # Of a hidden text only the hashes of its elements are known.
    words = _hashed_words(item) if hidden else words_of(item.text)
    valid = np.asarray(item.valid.any(axis=0)).tolist()
    scored = [place for place, one in zip(_places(item), valid, strict=True) if one]
    for word in terms:
        forms = hashed_terms(word) if hidden else [term_of(word)]
        found = (place for term in forms for place in occurrences(words, term))
        places = [place for place in found if any(_overlap(place, span) for span in scored)]
        if places:
            yield word, places


def _hashed_words(item: Attribution) -> list[tuple[str, Span]]:
    return [each for each in zip(item.elements, _places(item), strict=True) if not is_punctuation(each[0])]


def _hits(rule: WordsRule, item: Attribution, row: int, spans: Mapping[str, list[Span]], shown: str) -> Iterator[Hit]:
    for rank, element in enumerate(item.ranking(row)[: rule.top].tolist(), 1):
        score = float(item.scores[row, element])
        if score <= 0:
            return
        own = (int(item.spans[element, 0]), int(item.spans[element, 1]))
        for word, places in spans.items():
            if any(_overlap(place, own) for place in places):
                yield Hit(word, item.index, shown, rank, score)


def _places(item: Attribution) -> list[Span]:
    return [(int(start), int(end)) for start, end in item.spans.tolist()]


def _overlap(one: Span, other: Span) -> bool:
    return one[0] < other[1] and other[0] < one[1]
