"""What evidence hangs on what: models, the runs that explained them, the data, the dictionaries, in both directions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlflow.entities import LoggedModel, Run

from interpreto_mlops.errors import ModelLoadError
from interpreto_mlops.text.terminal import one_line
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.links import run_url, version_url
from interpreto_mlops.tracking.reading import kinds_of, runs_that_explain
from interpreto_mlops.tracking.resolving import ResolvedModel, resolve
from interpreto_mlops.tracking.store import Store

_RUN = re.compile(r"^runs:/(?P<run>[0-9a-f]{32})/?$")


@dataclass
class Node:
    """A thing and what hangs on it.

    Arguments:
        relation: of this to the one above it, such as `made by` or `explained by`.
        kind: `model`, `dictionary`, `run`, `data` or `version`.
        title: what it is called.
        uri: its address, if it has one.
        link: to its page in the UI, if it has one.
        facts: a few more things.
        children: what hangs on it.
    """

    relation: str
    kind: str
    title: str
    uri: str | None = None
    link: str | None = None
    facts: dict[str, str] = field(default_factory=dict)
    children: list[Node] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the tree as plain data."""
        return {**vars(self), "children": [child.to_dict() for child in self.children]}

    def lines(self) -> Iterator[str]:
        """Yield the tree as lines of text."""
        yield self._line()
        for place, child in enumerate(self.children):
            last = place + 1 == len(self.children)
            for number, line in enumerate(child.lines()):
                head = ("└─ " if last else "├─ ") if number == 0 else ("   " if last else "│  ")
                yield head + line

    def _line(self) -> str:
        name = f"{self.relation}: {self.kind} {self.title}" if self.relation else f"{self.kind} {self.title}"
        facts = ", ".join(f"{key} {value}" for key, value in self.facts.items())
        uri = "" if self.uri is None or self.uri == self.title else f" <{self.uri}>"
        return one_line(f"{name}{uri}" + (f" ({facts})" if facts else ""))


def lineage(store: Store, uri: str) -> Node:
    """Return what a model, a dictionary or a run comes from, and what was made of it.

    Arguments:
        store: where it is.
        uri: of a registered version, a logged model, or a run (`runs:/<run id>`).

    Returns:
        A tree. Under a dictionary: its base model, its data, its run, its registered versions. Under a model: the runs
        that explained it and the dictionaries of it. Under a run: the model, the data, and what it made.

    Raises:
        ModelLoadError: there is no such model or run.
        TrackingError: the store does not answer.
    """
    if match := _RUN.match(uri):
        run = store.if_there(f"read the run {match['run']!r}", lambda: store.client.get_run(match["run"]))
        if run is None:
            raise ModelLoadError(f"there is no run {match['run']!r} at {store.shown!r}")
        return _run_node(store, "", run, whole=True)
    found = resolve(store, uri)
    logged = _get_logged(store, found.model_id)
    tags = _tags(store, found, logged)
    node = Node("", "model", found.uri, facts=_facts(tags))
    if found.version is not None:
        node.link = version_url(store, found.name, found.version)
        node.facts |= _aliases(store, found.name, found.version)
    if tags.get(schema.TAG_KIND) == schema.DICTIONARY_KIND:
        node.kind = "dictionary"
        node.children += _of_dictionary(store, found, tags)
    else:
        node.children += _of_model(store, found, tags)
    return node


def _of_dictionary(store: Store, found: ResolvedModel, tags: Mapping[str, str]) -> Iterator[Node]:
    base = tags.get(schema.TAG_MODEL_URI)
    if base is not None:
        sha256 = tags.get(schema.TAG_MODEL_FINGERPRINT)
        yield Node("learned from", "model", base, base, facts={"sha256": sha256[:12]} if sha256 else {})
    if found.run_id is not None:
        run = _find_run(store, found.run_id)
        if run is None:
            yield Node("made by", "run", found.run_id, facts={"state": "deleted"})
        else:
            yield _run_node(store, "made by", run)
            if named := run.data.tags.get(schema.TAG_LABELS_OF):
                by = run.data.tags.get(schema.TAG_LABELS_BY)
                yield Node("with new labels for", "dictionary", named, named, facts={"by": by} if by else {})
            yield from _data_nodes(run)
    yield from _version_nodes(store, found)


def _of_model(store: Store, found: ResolvedModel, tags: Mapping[str, str]) -> Iterator[Node]:
    if found.run_id is not None and (made := _find_run(store, found.run_id)) is not None:
        yield _run_node(store, "made by", made)
    for run in runs_that_explain(store, found):
        audited = kinds_of(run) == ["audit"]
        node = _run_node(store, "audited by" if audited else "explained by", run)
        node.children += _data_nodes(run)
        node.children += [_made_node(store, model) for model in _outputs(store, run)]
        yield node
    yield from _version_nodes(store, found)


def _run_node(store: Store, relation: str, run: Run, *, whole: bool = False) -> Node:
    tags = run.data.tags
    facts = {"kind": tags.get(schema.TAG_KIND), "status": run.info.status, "suite": tags.get(schema.TAG_SUITE)}
    node = Node(
        relation,
        "run",
        str(run.info.run_name),
        f"runs:/{run.info.run_id}",
        run_url(store, run.info.run_id, str(run.info.experiment_id)),
        {name: str(value) for name, value in facts.items() if value},
    )
    if whole:
        if base := tags.get(schema.TAG_MODEL_URI):
            node.children.append(Node("explains", "model", base, base))
        node.children += _data_nodes(run)
        node.children += [_made_node(store, model) for model in _outputs(store, run)]
    return node


def _data_nodes(run: Run) -> Iterator[Node]:
    for given in run.inputs.dataset_inputs if run.inputs else []:
        context = next((tag.value for tag in given.tags if tag.key == "mlflow.data.context"), "used")
        yield Node(f"{context} on", "data", str(given.dataset.name), facts={"digest": str(given.dataset.digest)})


def _outputs(store: Store, run: Run) -> list[LoggedModel]:
    ids = [output.model_id for output in run.outputs.model_outputs] if run.outputs else []
    found = (_get_logged(store, model_id) for model_id in ids)
    return [model for model in found if model is not None]


def _made_node(store: Store, model: LoggedModel) -> Node:
    kind = "dictionary" if model.tags.get(schema.TAG_KIND) == schema.DICTIONARY_KIND else "model"
    node = Node("made", kind, str(model.name), f"models:/{model.model_id}", facts=_facts(model.tags))
    node.children += _registered(store, str(model.model_id))
    return node


def _version_nodes(store: Store, found: ResolvedModel) -> Iterable[Node]:
    if found.model_id is None:
        return []
    own = found.uri
    return [node for node in _registered(store, found.model_id) if node.uri != own]


def _registered(store: Store, model_id: str) -> list[Node]:
    """Return the versions whose source is a logged model."""
    with store.guarded("search registered versions"):
        versions = store.client.search_model_versions(f"source_path = 'models:/{model_id}'")
    return [
        Node(
            "registered as",
            "version",
            f"models:/{version.name}/{version.version}",
            f"models:/{version.name}/{version.version}",
            version_url(store, version.name, version.version),
            _aliases(store, version.name, str(version.version)),
        )
        for version in sorted(versions, key=lambda each: (each.name, int(each.version)))
    ]


def _aliases(store: Store, name: str, version: str) -> dict[str, str]:
    with store.guarded("read a registered model"):
        aliases = store.client.get_registered_model(name).aliases
    own = sorted(alias for alias, number in aliases.items() if str(number) == version)
    return {"alias": ", ".join(own)} if own else {}


def _facts(tags: Mapping[str, str]) -> dict[str, str]:
    named = {"layer": schema.TAG_LAYER, "method": schema.TAG_METHOD}
    return {name: tags[tag] for name, tag in named.items() if tag in tags}


def _tags(store: Store, found: ResolvedModel, logged: LoggedModel | None) -> Mapping[str, str]:
    if found.version is not None:
        with store.guarded("read a version"):
            tags: Mapping[str, str] = store.client.get_model_version(found.name, found.version).tags
        return tags
    return {} if logged is None else dict(logged.tags)


def _get_logged(store: Store, model_id: str | None) -> LoggedModel | None:
    if model_id is None:
        return None
    return store.if_there("read a logged model", lambda: store.client.get_logged_model(model_id))


def _find_run(store: Store, run_id: str) -> Run | None:
    run = store.if_there(f"read the run {run_id!r}", lambda: store.client.get_run(run_id))
    return None if run is None or run.info.lifecycle_stage == "deleted" else run
