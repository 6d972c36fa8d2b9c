"""Whether evidence is still what it was when it was logged: files, the logged model, the base model, aliases."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from interpreto_mlops.concepts.base import CARD_FILE
from interpreto_mlops.errors import CodeNeededError, InputError, IntegrityError, ModelLoadError, TrackingError
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.addresses import first_line
from interpreto_mlops.tracking.loading import load_model
from interpreto_mlops.tracking.manifest import differences, digest_of, parse_manifest
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
    model is loaded from its pinned address and its fingerprint compared; no code or pickle of a pyfunc is run for that.

    Arguments:
        store: where it is.
        uri: of a registered version, a logged model or a run.

    Raises:
        ModelLoadError: there is no such model, or the address cannot be read.
        TrackingError: the store does not answer, or does not let us read.
    """
    if match := _RUN.match(uri):
        n_files, findings = _artifacts(store, match["run"], of_a_model=False)
        return Verification(uri, f"runs:/{match['run']}", n_files, tuple(findings))
    try:
        found = resolve(store, uri)
    except IntegrityError as error:
        return Verification(uri, uri, 0, (Finding("changed", uri, str(error)),))
    version, logged = _tags_of_version(store, found), _tags_of_logged(store, found)
    findings = [*_manifests(found, version, logged)]
    if found.model_id is not None and logged is None:
        findings.append(Finding("gone", f"models:/{found.model_id}", f"the logged model under {found.uri} was deleted"))
    try:
        with downloaded(store, found) as folder:
            findings += _changes(found.uri, folder, found.manifest) if found.manifest else []
            findings += _base(store, {**(logged or {}), **(version or {})}, folder)
    except ModelLoadError as error:
        findings.append(Finding("gone", found.uri, f"its files are gone: {error}"))
    n_artifacts, of_run = (0, []) if found.run_id is None else _artifacts(store, found.run_id, of_a_model=True)
    return Verification(uri, found.uri, len(found.manifest) + n_artifacts, (*findings, *of_run))


def _manifests(
    found: ResolvedModel, version: Mapping[str, str] | None, logged: Mapping[str, str] | None
) -> Iterator[Finding]:
    """Compare what the version and the logged model say of the files, and each manifest with its own sha256."""
    if not found.manifest:
        yield Finding("unknown", found.uri, "it has no manifest, for it was not logged by interpreto_mlops")
        return
    for subject, tags in ((found.uri, version), (f"models:/{found.model_id}", logged)):
        # Who registers a logged model later does so without its tags.
        if tags is None or not {schema.TAG_MANIFEST, schema.TAG_SHA256} & tags.keys():
            continue
        try:
            manifest = parse_manifest(tags.get(schema.TAG_MANIFEST, "{}"), repr(subject))
        except IntegrityError as error:
            yield Finding("changed", subject, str(error))
            continue
        if digest_of(manifest) != tags.get(schema.TAG_SHA256):
            yield Finding("changed", subject, "its manifest is not the one whose sha256 its tags hold")
        elif manifest != found.manifest:
            yield Finding("changed", subject, "the manifests of the version and of its logged model differ")


def _tags_of_version(store: Store, found: ResolvedModel) -> Mapping[str, str] | None:
    if found.version is None:
        return None
    with store.guarded("read a version"):
        return dict(store.client.get_model_version(found.name, found.version).tags)


def _tags_of_logged(store: Store, found: ResolvedModel) -> Mapping[str, str] | None:
    model_id = found.model_id
    if model_id is None:
        return None
    model = store.if_there("read a logged model", lambda: store.client.get_logged_model(model_id))
    return None if model is None else dict(model.tags)


def _changes(subject: str, folder: Path, manifest: Mapping[str, str]) -> list[Finding]:
    said = {"missing": "is missing", "changed": "was changed", "added": "was added"}
    return [
        Finding(verdict, subject, f"the file {name!r} {said[verdict]} since it was logged")
        for name, verdict in differences(folder, manifest).items()
    ]


def _base(store: Store, tags: Mapping[str, str], folder: Path) -> Iterator[Finding]:
    """Compare the model that a dictionary was learned from with its fingerprint, and say where its aliases are now."""
    uri, fingerprint = tags.get(schema.TAG_MODEL_URI), tags.get(schema.TAG_MODEL_FINGERPRINT)
    if tags.get(schema.TAG_KIND) != schema.DICTIONARY_KIND or uri is None:
        return
    if not is_model_uri(uri) and not Path(uri).exists():
        yield Finding("note", uri, "the base model is not in this store, and was not compared")
        return
    try:
        now = load_model(uri, store=store, run_code=False, **_dtype_of(folder)).fingerprint
    except CodeNeededError:
        yield Finding("unknown", uri, "the base model was not compared: only its own code could load it")
        return
    except IntegrityError as error:
        yield Finding("changed", uri, f"the base model was changed: {error}")
        return
    except (ModelLoadError, InputError) as error:
        yield Finding("gone", uri, f"the base model cannot be loaded: {error}")
        return
    if fingerprint is not None and now != fingerprint:
        yield Finding("changed", uri, f"the base model's fingerprint is {now[:12]} now and was {fingerprint[:12]}")
    yield from _moved_aliases(store, uri)


def _dtype_of(folder: Path) -> dict[str, str]:
    """Return in which dtype the base model was explained, which its fingerprint depends on, as an option."""
    for card in folder.rglob(CARD_FILE):
        try:
            said = json.loads(card.read_text(encoding="utf-8"))
            return {"dtype": str(said["provenance"]["model"]["dtype"])}
        except (OSError, ValueError, KeyError, TypeError):
            break
    return {}


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


def _artifacts(store: Store, run_id: str, *, of_a_model: bool) -> tuple[int, list[Finding]]:
    """Compare the artifacts of a run with its manifest.

    Arguments:
        of_a_model: whether the run is looked at for the model that it made: a user's own run need not be sealed then.
    """
    subject = f"runs:/{run_id}"
    run = store.if_there(f"read the run {run_id!r}", lambda: store.client.get_run(run_id))
    if run is None or run.info.lifecycle_stage == "deleted":
        return 0, [Finding("gone", subject, "the run was deleted")]
    if schema.TAG_SHA256 not in run.data.tags:
        theirs = of_a_model and schema.TAG_KIND not in run.data.tags
        return 0, [Finding("note" if theirs else "unknown", subject, "the run has no manifest of its artifacts")]
    with tempfile.TemporaryDirectory(prefix="interpreto-run-") as scratch:
        try:
            with store.guarded(f"read the artifacts of the run {run_id!r}"):
                folder = Path(store.client.download_artifacts(run_id, "", scratch))
        except TrackingError:
            # It is an OSError, too, and says nothing of the run.
            raise
        except OSError as error:
            return 0, [Finding("unknown", subject, f"its artifacts cannot be read: {first_line(error)}")]
        try:
            manifest = parse_manifest((folder / schema.RUN_MANIFEST).read_text(encoding="utf-8"), repr(subject))
        except (OSError, UnicodeDecodeError):
            return 0, [Finding("missing", subject, f"{schema.RUN_MANIFEST} is missing or cannot be read")]
        except IntegrityError as error:
            return 0, [Finding("changed", subject, str(error))]
        if digest_of(manifest) != run.data.tags[schema.TAG_SHA256]:
            return 0, [Finding("changed", subject, "the manifest is not the one whose sha256 the run's tags hold")]
        # What others put beside it is theirs, above all in a run that the user opened.
        changes = [each for each in _changes(subject, folder, manifest) if each.verdict != "added"]
        return len(manifest), changes
