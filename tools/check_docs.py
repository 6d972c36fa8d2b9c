"""Check the documentation: docs/reference.md says what the code says, and links between pages lead somewhere.

`--write` makes docs/reference.md anew from the registries' docstrings and the command line's help.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference.md"
COMMAND = "interpreto-mlops"
WIDTH = 100


class Section(NamedTuple):
    """A registry and how the reference presents it."""

    kind: str
    plural: str
    module: str
    registry: str
    lead: str


SECTIONS = (
    Section(
        "attribution method",
        "Attribution methods",
        "interpreto_mlops.attributions",
        "METHODS",
        "Which words made the model say what it says. `--methods` of `attribute` takes these names.",
    ),
    Section(
        "attribution metric",
        "Attribution metrics",
        "interpreto_mlops.attributions.metrics",
        "METRICS",
        "Whether an attribution is true to the model. `--metrics` takes these names; runs hold them under "
        "`faithfulness/`, with `_random` beside each.",
    ),
    Section(
        "concept dictionary",
        "Concept dictionaries",
        "interpreto_mlops.concepts",
        "DICTIONARIES",
        "Which directions a layer's activations are made of. `--methods` of `concepts` takes these names.",
    ),
    Section(
        "probe",
        "Probes",
        "interpreto_mlops.concepts",
        "PROBES",
        "Concepts learned from labels. `--methods` of `probe` takes these names.",
    ),
    Section(
        "concept importance",
        "Concept importance",
        "interpreto_mlops.concepts",
        "IMPORTANCE",
        "How much each concept matters to what the model says. `--importance` of `concepts` takes these names.",
    ),
    Section(
        "concept interpretation",
        "Concept interpretations",
        "interpreto_mlops.concepts",
        "INTERPRETATIONS",
        "What a concept means: what it responds to, what it does to the output, and the names that it is given.",
    ),
    Section(
        "concept metric",
        "Concept metrics",
        "interpreto_mlops.concepts.metrics",
        "METRICS",
        "How good a dictionary is, under these names in its run.",
    ),
    Section(
        "data set",
        "Data sets",
        "interpreto_mlops.text.datasets",
        "DATASETS",
        "Texts that `--data` takes by name.",
    ),
)

# What Python code calls beside what the registries hold.
PYTHON = (
    (
        "interpreto_mlops",
        ("load_model", "TextModel", "compare_methods", "log_attributions", "live_training", "log_dictionary"),
    ),
    ("interpreto_mlops.attributions", ("Attributor.__call__", "Attribution", "AttributionSet", "Target")),
    ("interpreto_mlops.attributions.metrics", ("evaluate", "MetricResult", "MetricSet")),
    (
        "interpreto_mlops.concepts",
        (
            "ModelWithSplitPoints",
            "ModelWithSplitPoints.get_activations",
            "ActivationSet",
            "fit_together",
            "local_importance",
            "concept_importance",
            "evaluate",
            "evaluate_effect",
            "probe_texts",
            "Probe.fit",
            "cross_validate",
            "tcav",
            "interpret",
            "label_concepts",
            "align",
            "score_labels",
            "consim",
            "concept_targets",
        ),
    ),
    (
        "interpreto_mlops.concepts.interpretation_metrics",
        ("Detection", "Fuzzing", "Clarity", "Responsiveness", "Purity", "Faithfulness", "InterpretationScore"),
    ),
    ("interpreto_mlops.attributions", ("simulatability",)),
    ("interpreto_mlops.llm.simulation", ("Simulation", "SimulationResult")),
    (
        "interpreto_mlops.llm",
        (
            "Prompt",
            "OpenAIModel",
            "LocalModel",
            "RecordedAnswers",
            "write_answers",
            "Questioner",
            "Questioner.ask",
            "Questioner.estimate",
            "AnswerCache",
            "Budget",
        ),
    ),
    ("interpreto_mlops.audit.comparison", ("compare_evidence",)),
    ("interpreto_mlops.audit.auditing", ("audit",)),
    (
        "interpreto_mlops.audit.catalogue",
        ("Catalogue.connect", "Catalogue.ask", "Catalogue.move_alias", "Catalogue.append", "Catalogue.verify_log"),
    ),
)

PREFACE = """\
# Reference

Made by `make docs` from docstrings and `--help` texts; `make check` fails when it is out of date.
"""

# A docstring's section: its title at the margin, then indented `name: text` entries.
TITLE = re.compile(r"^(Arguments|Attributes|Returns|Yields|Warns|Raises|Source|Example|Examples):$")
ENTRY = re.compile(r"^(\*{0,2}[\w., *]+?): (.*)$")
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)|<(?:img|a)\b[^>]*\b(?:src|href)=\"([^\"]+)\"")
FENCE = re.compile(r"^(```|~~~).*?^\1[`~]*\s*?$", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^#+\s+(.*?)\s*#*$", re.MULTILINE)


def documentation(item: object) -> str:
    """The docstring, or that of what computes it; without one there is nothing to refer to."""
    text = inspect.getdoc(item if callable(item) else getattr(item, "compute", None))
    if not text:
        sys.exit(f"{item!r} has no docstring")
    return text


def signature(item: Callable[..., object]) -> str:
    """A call of the class or function with its defaults, without types (the text below has those)."""
    shown = inspect.signature(item)
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in shown.parameters.values()]
    return f"{item.__name__}{shown.replace(parameters=bare, return_annotation=inspect.Signature.empty)}"


def entries(block: list[str]) -> Iterator[str]:
    """One bullet for each `name: text` of a docstring's section, its continuation lines joined."""
    indent = min(len(line) - len(line.lstrip()) for line in block if line.strip())
    bullets: list[str] = []
    for line in (line[indent:] for line in block if line.strip()):
        match = ENTRY.match(line)
        if match and not line.startswith(" "):
            bullets.append(f"- `{match[1]}`: {match[2]}")
        elif bullets:
            bullets[-1] += f" {line.strip()}"
        else:
            bullets.append(f"- {line.strip()}")
    yield from bullets


def as_markdown(docstring: str) -> str:
    """A docstring with its sections as lists and its examples as code."""
    out: list[str] = []
    lines = docstring.splitlines()
    while lines:
        line = lines.pop(0)
        block: list[str] = []
        if TITLE.match(line):
            while lines and (not lines[0].strip() or lines[0].startswith(" ")):
                block.append(lines.pop(0))
        if not any(each.strip() for each in block):
            out.append(line)
        elif line.startswith("Example"):
            out += ["```python", inspect.cleandoc("\n".join(block)), "```", ""]
        else:
            out += [f"**{line}**", "", *entries(block), ""]
    return "\n".join(out).strip()


def registry_chapter(section: Section) -> Iterator[str]:
    """The chapter of one registry: a table of all names, then each with its parameters, then what they inherit."""
    registry = getattr(importlib.import_module(section.module), section.registry)
    items = {name: registry.get(name) for name in registry.names()}
    yield f"## {section.plural}\n\n{section.lead}\n"
    yield from table(section, items)
    for name, item in items.items():
        yield f"\n### {name} ({section.kind})\n"
        yield from body(item)
    for frame in frames(items.values()):
        yield f"\n### {frame.__name__} (frame)\n"
        yield from body(frame)


def table(section: Section, items: dict[str, object]) -> Iterator[str]:
    """All names of a registry, each with its first sentence; of metrics the direction and the range too."""
    metrics = all(hasattr(item, "higher_is_better") for item in items.values())
    yield f"| name | {'better | range | ' if metrics else ''}in one sentence |"
    yield f"| --- | {'--- | --- | ' if metrics else ''}--- |"
    for name, item in items.items():
        first = documentation(item).split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
        facts = f"{direction(item)} | " if metrics else ""
        yield f"| [`{name}`](#{slug(f'{name} ({section.kind})')}) | {facts}{first} |"


def direction(metric: Any) -> str:
    """Which end of a metric is good, and the values that it can take."""
    better = {True: "higher", False: "lower", None: "neither"}[metric.higher_is_better]
    low, high = (f"{bound:g}".replace("inf", "∞").replace("-", "−") for bound in metric.bounds)
    return f"{better} | {low} to {high}"


def body(item: Any) -> Iterator[str]:
    """How it is called, if it can be, and its docstring."""
    if callable(item):
        yield f"```python\n{signature(item)}\n```\n"
    yield as_markdown(documentation(item))


def frames(items: Iterable[object]) -> list[type]:
    """The classes of the package that the items inherit documented arguments from."""
    bases = [base for item in items if isinstance(item, type) for base in item.__mro__[1:]]
    own = [base for base in bases if base.__module__.startswith("interpreto_mlops")]
    return list(dict.fromkeys(base for base in own if "Arguments:" in (base.__doc__ or "")))


def command_chapter() -> Iterator[str]:
    """The command line: the help of the program and of each command, as a terminal shows it."""
    program = importlib.import_module("interpreto_mlops.cli").main
    context = program.make_context(COMMAND, [], resilient_parsing=True, terminal_width=WIDTH)
    yield f"\n## Command line\n\n```\n{program.get_help(context)}\n```"
    for name in program.list_commands(context):
        command = program.get_command(context, name)
        own = command.make_context(name, [], parent=context, resilient_parsing=True)
        yield f"\n### {COMMAND} {name}\n\n```\n{command.get_help(own)}\n```"


def python_chapter() -> Iterator[str]:
    """What Python code calls beside the methods, metrics and dictionaries themselves."""
    yield "## In Python\n"
    for module, names in PYTHON:
        home = importlib.import_module(module)
        for name in names:
            owner, _, method = name.partition(".")
            item = getattr(home, owner)
            title = f"{module}.{owner}"
            if method:
                called = f"A method, called with texts ({module}.{name})"
                item, title = getattr(item, method), called if method == "__call__" else f"{module}.{name}"
            yield f"\n### {title}\n"
            yield from body(item)


def recipe_chapter() -> Iterator[str]:
    """The recipes: what a job can be asked to do, and the files of recipes/ by their first comment."""
    recipes = importlib.import_module("interpreto_mlops.workflows.recipes")
    yield "## Recipes\n"
    yield "A recipe is a YAML file that `interpreto-mlops run FILE` carries out; each run keeps its own.\n"
    yield "| file | what it does |\n| --- | --- |"
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        first = path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")
        yield f"| [{path.name}](../recipes/{path.name}) | {first} |"
    for kind in typing.get_args(recipes.Recipe):
        default = kind.model_fields["kind"].default
        yield f"\n### kind: {default}\n\n{as_markdown(documentation(kind))}\n"
    asking = importlib.import_module("interpreto_mlops.workflows.asking")
    yield f"\n### llm: of label and consim\n\n{as_markdown(documentation(asking.Asked))}\n"


def reference() -> str:
    """The whole reference page."""
    parts = [PREFACE]
    for section in SECTIONS:
        parts += [*registry_chapter(section), ""]
    text = "\n".join([*parts, *python_chapter(), "", *recipe_chapter(), "", *command_chapter()])
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.splitlines())).strip() + "\n"


def slug(heading: str) -> str:
    """The anchor that a heading gets on the usual hosts."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """Every anchor of a page; a heading that comes again gets -1, -2, …"""
    found: set[str] = set()
    for heading in HEADING.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        base = slug(heading)
        found.add(next(each for n in range(1000) if (each := f"{base}-{n}" if n else base) not in found))
    return found


def pages() -> list[Path]:
    """Every page of the repository outside hidden folders and what runs leave behind."""
    return [
        page
        for page in sorted(ROOT.rglob("*.md"))
        if not any(part.startswith(".") or part in {"mlruns", "mlartifacts"} for part in page.relative_to(ROOT).parts)
    ]


def broken_links() -> Iterator[str]:
    """One sentence for each relative link that leads nowhere."""
    for page in pages():
        text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text(encoding="utf-8")))
        for target in ("".join(groups) for groups in LINK.findall(text)):
            path, _, fragment = target.partition("#")
            if re.match(r"[a-z][a-z+.-]*:", target):
                continue
            goal = (page.parent / path).resolve() if path else page
            if not goal.exists():
                yield f"{page.relative_to(ROOT)}: the link {target!r} leads to no file"
            elif fragment and goal.suffix == ".md" and fragment not in anchors(goal):
                yield f"{page.relative_to(ROOT)}: the link {target!r} leads to no heading"


def problems() -> Iterator[str]:
    """One sentence for everything that is wrong."""
    written = REFERENCE.read_text(encoding="utf-8") if REFERENCE.exists() else ""
    if written != reference():
        yield f"{REFERENCE.relative_to(ROOT)} is out of date: run `make docs`"
    yield from broken_links()


def main() -> None:
    """Check, or with --write make the reference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="make docs/reference.md anew first")
    if parser.parse_args().write:
        REFERENCE.write_text(reference(), encoding="utf-8")
    if found := list(problems()):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
