"""An audit as a page: the verdict on each rule, what decided it, and what was no evidence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from interpreto_mlops.visuals.report_html import (
    Block,
    Cell,
    Column,
    Command,
    Links,
    Paragraph,
    Report,
    Section,
    Table,
    Value,
    render_page,
)

_TONES = {"passed": "first", "failed": "second"}
_MOST_ROWS = 200
_OPEN = 10


def render_audit(audit: Mapping[str, Any], *, links: Mapping[str, str], policy: str, command: str = "") -> str:
    """Return an audit as a whole HTML page.

    Arguments:
        audit: as `report/audit.json` has it.
        links: to the pages of runs, by their ids.
        policy: the text of the policy.
        command: what repeats the audit.
    """
    sections = [Section("Rules", [_overview(audit["rules"])])]
    sections += [
        Section(f"{place}. {rule['title']}", list(_rule_blocks(rule, links)))
        for place, rule in enumerate(audit["rules"], 1)
    ]
    if audit["set_aside"]:
        sections.append(Section("Runs that are no evidence", [_aside(audit["set_aside"], links)]))
    sections.append(Section("Policy", [Command(policy, note=f"sha256 {audit['policy_sha256']}")]))
    report = Report(f"Audit of {audit['pinned']}", sections, lead=_lead(audit), facts=_facts(audit), command=command)
    return render_page(report)


def _lead(audit: Mapping[str, Any]) -> str:
    said = {
        "passed": "passes the policy",
        "failed": "fails the policy",
        "undecided": "cannot be judged by the policy: evidence is missing",
    }
    return f"{audit['pinned']} {said[audit['verdict']]}."


def _facts(audit: Mapping[str, Any]) -> dict[str, object]:
    named = {
        "verdict": "verdict",
        "subject": "subject",
        "asked for": "uri",
        "against": "against",
        "policy": "policy",
        "at": "at",
        "promotes to": "promote",
    }
    return {name: audit[key] for name, key in named.items() if audit.get(key)}


def _overview(rules: Sequence[Mapping[str, Any]]) -> Table:
    columns = [Column("rule"), Column("verdict"), Column("why")]
    rows = [
        [rule["title"], Cell(rule["verdict"], tone=_TONES.get(rule["verdict"], "")), rule["detail"]] for rule in rules
    ]
    return Table(columns, rows)


def _rule_blocks(rule: Mapping[str, Any], links: Mapping[str, str]) -> Iterator[Block]:
    yield Paragraph(f"{rule['verdict']}: {rule['detail']}")
    facts = [dict(each) for each in rule["facts"]]
    plain = [{key: value for key, value in each.items() if not isinstance(value, list)} for each in facts]
    if any(plain):
        yield _table(plain, links, "What was found")
    for each in facts:
        if hits := each.get("hits"):
            yield _table(hits, links, f"Found in run {each.get('run', '')}")
    places = {place: link for place in rule["evidence"] if (link := _link(place, links))}
    if places:
        yield Links(places)


def _table(rows: Sequence[Mapping[str, Any]], links: Mapping[str, str], title: str) -> Table:
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [Column(name.replace("_", " "), numeric=_numeric(rows, name)) for name in names]
    cells = [[_cell(name, row.get(name), links) for name in names] for row in rows[:_MOST_ROWS]]
    more = f", the first {_MOST_ROWS} of {len(rows)}" if len(rows) > _MOST_ROWS else ""
    return Table(columns, cells, folded=title + more, open=len(rows) <= _OPEN)


def _numeric(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    return all(isinstance(row.get(name), int | float | None) for row in rows)


def _cell(name: str, value: Any, links: Mapping[str, str]) -> Value | Cell:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {entry}" for key, entry in value.items())
    if name in ("run", "champion_run") and str(value) in links:
        return Cell(str(value), link=links[str(value)])
    if name == "verdict":
        return Cell(str(value), tone=_TONES.get(str(value), ""))
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _link(place: str, links: Mapping[str, str]) -> str | None:
    """Return the link to the run that an address such as `runs:/<run id>/<file>` is in."""
    return links.get(place.removeprefix("runs:/").split("/")[0])


def _aside(entries: Sequence[Mapping[str, Any]], links: Mapping[str, str]) -> Table:
    rows = [[Cell(each["run"], link=links.get(each["run"], "")), each["why"]] for each in entries]
    return Table([Column("run"), Column("why")], rows)
