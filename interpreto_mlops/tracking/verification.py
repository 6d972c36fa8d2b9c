"""Whether evidence is still what it was when it was logged: files, the logged model, the base model, aliases."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException

from interpreto_mlops.errors import InterpretoError, ModelLoadError
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.addresses import first_line
from interpreto_mlops.tracking.loading import load_model
from interpreto_mlops.tracking.manifest import differences, digest_of
from interpreto_mlops.tracking.resolving import ResolvedModel, downloaded, is_model_uri, resolve
from interpreto_mlops.tracking.store import Store

_RUN = re.compile(r"^runs:/(?P<run>[0-9a-f]{32})/?$")

BROKEN = ("changed", "missing", "added", "gone")
"""Findings that say that evidence is not what it was."""

UNDECIDED = ("unknown",)
"""Findings that say that it cannot be told."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Arguments:
        verdict: `changed`, `missing`, `added` (of files), `gone` (of models and runs), `unknown` where there is nothing
            to compare with, or `note` for what is no fault.
        subject: the model or run it is about.
        detail: what was found, one sentence without a dot.
    """

    verdict: str
    subject: str
    detail: str


@dataclass(frozen=True)
class Verification:
    """What was compared, and what is not as it was.

    Arguments:
        uri: as it was given.
        pinned: the address that it means now.
        n_files: how many files were compared.
        findings: in the order in which they were found.
    """

    uri: str
    pinned: str
    n_files: int
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> str:
        """`broken` where something changed or is gone, else `undecided` where something is unknown, else `intact`."""
        verdicts = {finding.verdict for finding in self.findings}
        if verdicts & set(BROKEN):
            return "broken"
        return "undecided" if verdicts & set(UNDECIDED) else "intact"

    def to_dict(self) -> dict[str, object]:
        """Return plain data."""
        return {
            "uri": self.uri,
            "pinned": self.pinned,
            "verdict": self.verdict,
            "n_files": self.n_files,
            "findings": [vars(finding) for finding in self.findings],
        }


def verify_evidence(store: Store, uri: str) -> Verification:
    """Recompute the sha256 of what was logged, and look for what it refers to.

    Of a model all files are compared with the manifest that was kept when it was logged, in the version's tags and in
    the logged model's own; of its run, and of a run given as `runs:/<run id>`, all artifacts. Of a dictionary the base
    model is loaded from its pinned address and its fingerprint compared.

    Arguments:
        store: where it is.
        uri: of a registered version, a logged model or a run.

    Raises:
        ModelLoadError: there is no such model or run.
        TrackingError: the store does not answer.
    """
    if match := _RUN.match(uri):
        return _verify_run(store, uri, match["run"])
    found = resolve(store, uri)
    checks = [*_manifests(store, found), *_logged_model(store, found)]
    n_files, of_files = _files(store, found)
    checks += of_files
    checks += _base(store, found)
    if found.run_id is not None:
        n_artifacts, of_run = _artifacts(store, found.run_id)
        n_files += n_artifacts
        checks += of_run
    return Verification(uri, found.uri, n_files, tuple(checks))


def _verify_run(store: Store, uri: str, run_id: str) -> Verification:
    n_files, findings = _artifacts(store, run_id)
    return Verification(uri, f"runs:/{run_id}", n_files, tuple(findings))


def _manifests(store: Store, found: ResolvedModel) -> Iterator[Finding]:
    """Compare what the version and the logged model say of the files, and the manifest with its own sha256."""
    if not found.manifest:
        yield Finding("unknown", found.uri, "it has no manifest, for it was not logged by interpreto_mlops")
        return
    kept = {found.uri: _tags_of_version(store, found), f"models:/{found.model_id}": _tags_of_logged(store, found)}
    for subject, tags in kept.items():
        if tags is None:
            continue
        manifest = json.loads(tags.get(schema.TAG_MANIFEST, "{}"))
        if digest_of(manifest) != tags.get(schema.TAG_SHA256):
            yield Finding("changed", subject, "its manifest is not the one whose sha256 its tags hold")
        elif manifest != found.manifest:
            yield Finding("changed", subject, "the manifests of the version and of its logged model differ")


def _tags_of_version(store: Store, found: ResolvedModel) -> Mapping[str, str] | None:
    if found.version is None:
        return None
    with store.guarded("read a version"):
        tags: Mapping[str, str] = store.client.get_model_version(found.name, found.version).tags
    return tags


def _tags_of_logged(store: Store, found: ResolvedModel) -> Mapping[str, str] | None:
    try:
        return None if found.model_id is None else dict(store.client.get_logged_model(found.model_id).tags)
    except MlflowException:
        return None


def _logged_model(store: Store, found: ResolvedModel) -> Iterator[Finding]:
    """Find out whether the logged model under a version was deleted, by somebody or by garbage collection."""
    if found.model_id is None:
        return
    try:
        store.client.get_logged_model(found.model_id)
    except (MlflowException, RequestException) as error:
        gone = f"the logged model under {found.uri} is gone: {first_line(error)}"
        yield Finding("gone", f"models:/{found.model_id}", gone)


def _files(store: Store, found: ResolvedModel) -> tuple[int, list[Finding]]:
    try:
        with downloaded(store, found) as folder:
            return len(found.manifest), _changes(found.uri, folder, found.manifest) if found.manifest else []
    except ModelLoadError as error:
        return 0, [Finding("gone", found.uri, f"its files are gone: {error}")]


def _changes(subject: str, folder: Path, manifest: Mapping[str, str]) -> list[Finding]:
    said = {"missing": "is missing", "changed": "was changed", "added": "was added"}
    return [
        Finding(verdict, subject, f"the file {name!r} {said[verdict]} since it was logged")
        for name, verdict in differences(folder, manifest).items()
    ]


def _base(store: Store, found: ResolvedModel) -> Iterator[Finding]:
    """Compare the model that a dictionary was learned from with its fingerprint, and say where its aliases are now."""
    tags = _tags_of_version(store, found) or _tags_of_logged(store, found) or {}
    uri, fingerprint = tags.get(schema.TAG_MODEL_URI), tags.get(schema.TAG_MODEL_FINGERPRINT)
    if tags.get(schema.TAG_KIND) != schema.DICTIONARY_KIND or uri is None:
        return
    if not is_model_uri(uri) and not Path(uri).exists():
        yield Finding("note", uri, "the base model is not in this store, and was not compared")
        return
    try:
        now = load_model(uri, store=store).fingerprint
    except InterpretoError as error:
        yield Finding("gone", uri, f"the base model cannot be loaded: {error}")
        return
    if fingerprint is not None and now != fingerprint:
        yield Finding("changed", uri, f"the base model's fingerprint is {now[:12]} now and was {fingerprint[:12]}")
    yield from _moved_aliases(store, uri)


def _moved_aliases(store: Store, uri: str) -> Iterator[Finding]:
    match = re.match(r"^models:/(?P<name>[^/:]+)/(?P<version>\d+)$", uri)
    if match is None:
        return
    with store.guarded("read a registered model"):
        aliases: Mapping[str, str] = store.client.get_registered_model(match["name"]).aliases
    for alias, version in aliases.items():
        if str(version) != match["version"]:
            here = f"this explains version {match['version']}"
            yield Finding("note", uri, f"the base model's alias {alias!r} points to version {version}, and {here}")


def _artifacts(store: Store, run_id: str) -> tuple[int, list[Finding]]:
    """Compare the artifacts of a run with its manifest."""
    subject = f"runs:/{run_id}"
    try:
        tags = store.client.get_run(run_id).data.tags
    except MlflowException as error:
        return 0, [Finding("gone", subject, f"the run is gone: {first_line(error)}")]
    except RequestException as error:
        raise ModelLoadError(f"cannot read the run {run_id!r}: {first_line(error)}") from None
    if schema.TAG_SHA256 not in tags:
        return 0, [Finding("unknown", subject, "the run has no manifest of its artifacts")]
    with tempfile.TemporaryDirectory(prefix="interpreto-run-") as scratch:
        try:
            folder = Path(store.client.download_artifacts(run_id, "", scratch))
            manifest = json.loads((folder / schema.RUN_MANIFEST).read_text(encoding="utf-8"))
        except (MlflowException, RequestException, OSError, ValueError) as error:
            return 0, [Finding("gone", subject, f"the manifest of the artifacts is gone: {first_line(error)}")]
        if digest_of(manifest) != tags[schema.TAG_SHA256]:
            return 0, [Finding("changed", subject, "the manifest is not the one whose sha256 the run's tags hold")]
        # What others put beside it is theirs, above all in a run that the user opened.
        changes = [each for each in _changes(subject, folder, manifest) if each.verdict != "added"]
        return len(manifest), changes
