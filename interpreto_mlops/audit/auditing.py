"""One audit: a version pinned, judged by a policy, written into a run and the log, and promoted on a pass."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timezone
from pathlib import Path

from mlflow.exceptions import MlflowException

from interpreto_mlops.audit.audit_report import AuditReport, Promotion
from interpreto_mlops.audit.catalogue import Catalogue
from interpreto_mlops.audit.catalogue.log import Action
from interpreto_mlops.audit.policies.evidence import Evidence, gather
from interpreto_mlops.audit.policies.judging import judge
from interpreto_mlops.audit.policies.reading import load_policy
from interpreto_mlops.audit.policies.schema import Policy
from interpreto_mlops.audit.policies.verdicts import Verdict
from interpreto_mlops.errors import CatalogueError, InputError, IntegrityError, InterpretoError, TrackingError
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.addresses import redact
from interpreto_mlops.tracking.links import run_url
from interpreto_mlops.tracking.resolving import ResolvedModel, resolve
from interpreto_mlops.tracking.runs import RunLog, run
from interpreto_mlops.tracking.store import Store, connect
from interpreto_mlops.visuals.audit_html import render_audit

_ALIAS = re.compile(r"^[A-Za-z0-9_-]{1,255}$")
_RESERVED = re.compile(r"^(latest|v\d+)$", re.IGNORECASE)
_NOT_ALLOWED = {"PERMISSION_DENIED", "UNAUTHENTICATED"}


def audit(
    store: Store,
    uri: str,
    policy: Policy | str | Path,
    *,
    against: str | None = None,
    promote: str | None = None,
    catalogue: Catalogue | str | None = None,
    experiment: str | None = None,
    actor: str | None = None,
    command: str | None = None,
) -> AuditReport:
    """Judge a version by a policy, and let an alias name it where it passes.

    The audit is a run of kind `audit` in the store's experiment, with the report as a page and as JSON and the policy
    beside it; an entry in the catalogue's log; and tags of the version, where its owner lets us.

    Arguments:
        store: where everything is.
        uri: of a registered version of an explained model or a dictionary, or of a logged model; an alias is pinned at
            the start.
        policy: or the path of one.
        against: the version that rules of the kind `champion` compare with; pinned at the start, too.
        promote: the alias of the same registered model that is to name the version on a pass, and only then.
        catalogue: whose log tells of it, or its address; by default the one that `Catalogue.connect` opens for the
            store.
        experiment: of the audit's run, created where it is missing; by default the store's.
        actor: who; by default the user that the operating system runs this process as.
        command: what repeats it.

    Raises:
        InputError: a policy that cannot be used, something to promote that is no registered version, or a version to
            compare with whose manifest was changed into none; nothing is written then.
        ModelLoadError: there is no such version; nothing is written then.
        IntegrityError: the version's manifest was changed into none; nothing is written then.
        CatalogueError: the catalogue fails.
        TrackingError: the store fails.
    """
    given = policy if isinstance(policy, Policy) else load_policy(policy)
    subject = resolve(store, uri)
    rival = None if against is None else _rival(store, against)
    stood = None if promote is None else _alias_before(store, subject, promote)
    if experiment is not None:
        store = connect(store.tracking_uri, experiment)
    with _opened(catalogue, store) as book:
        tags = _tags(store, subject)
        evidence = gather(store, subject, tags)
        champion = None if rival is None else gather(store, rival, _tags(store, rival))
        evidence.hides_texts = book.hides_texts
        found = [each for each in (evidence, champion) if each is not None]
        report = _judged(given, evidence, champion, promote)
        report = replace(report, run_id=_written(store, given, report, found, command))
        _logged(book, store, report, tags, actor)
        report = replace(report, notes=tuple(_tagged(store, subject, report)))
        if promote is None:
            return report
        promotion = _promoted(book, store, subject, report, promote, stood, actor)
        return replace(report, promotion=promotion)


def _rival(store: Store, against: str) -> ResolvedModel:
    try:
        return resolve(store, against)
    except IntegrityError as error:
        # The version that is audited is not at fault.
        raise InputError(f"cannot compare with {against!r}: {error}") from error


@contextmanager
def _opened(catalogue: Catalogue | str | None, store: Store) -> Iterator[Catalogue]:
    if isinstance(catalogue, Catalogue):
        yield catalogue
        return
    with Catalogue.connect(catalogue, store=store) as opened:
        yield opened


def _alias_before(store: Store, subject: ResolvedModel, alias: str) -> str | None:
    """Return the version that an alias names now, or None where there is no such alias.

    Raises:
        InputError: what is to be promoted is no registered version, or the alias is none.
    """
    if subject.version is None:
        raise InputError(f"only a registered version can be promoted, not {subject.given!r}; register it first")
    if not _ALIAS.match(alias) or _RESERVED.match(alias):
        forms = "is made of letters, digits, '_' and '-', and is neither 'latest' nor like 'v3'"
        raise InputError(f"an alias {forms}, unlike {alias!r}")
    with store.guarded(f"read the registered model {subject.name!r}"):
        found: Mapping[str, str] = store.client.get_registered_model(subject.name).aliases
    return None if alias not in found else str(found[alias])


def _tags(store: Store, found: ResolvedModel) -> dict[str, str]:
    """Return the tags of a version, beside those of its logged model: who registers that later does so without them."""
    logged: dict[str, str] = {}
    if (model_id := found.model_id) is not None:
        model = store.if_there(f"read {found.uri!r}", lambda: store.client.get_logged_model(model_id))
        logged = {} if model is None else dict(model.tags)
    if found.version is None:
        return logged
    with store.guarded(f"read {found.uri!r}"):
        return {**logged, **store.client.get_model_version(found.name, found.version).tags}


def _judged(policy: Policy, evidence: Evidence, champion: Evidence | None, promote: str | None) -> AuditReport:
    both = [found for found in (evidence, champion) if found is not None]
    return AuditReport(
        uri=evidence.model.given,
        pinned=evidence.model.uri,
        subject="dictionary" if evidence.is_dictionary else "model",
        policy=policy.name,
        policy_sha256=policy.sha256,
        at=evidence.now.astimezone(timezone.utc).isoformat(timespec="seconds"),
        rules=tuple(judge(policy, evidence, champion)),
        against=None if champion is None else champion.model.uri,
        promote=promote,
        set_aside=tuple({"run": each.run_id, "why": each.why} for found in both for each in found.set_aside),
        seals={piece.run_id: piece.seal for found in both for piece in found.pieces},
    )


def _written(store: Store, policy: Policy, report: AuditReport, found: Sequence[Evidence], command: str | None) -> str:
    """Write the run of an audit; return its id.

    Raises:
        TrackingError: the store fails, or does not let us write.
    """
    tags = {
        schema.TAG_MODEL_URI: report.pinned,
        schema.TAG_MODEL_ID: found[0].model.model_id,
        schema.TAG_AUDIT_STATUS: report.verdict.value,
        schema.TAG_COMMAND: command,
    }
    said = {"subject": report.pinned, "against": report.against, "policy": report.policy}
    params = schema.params({**said, "policy_sha256": report.policy_sha256})
    links = {
        run_id: run_url(store, run_id, experiment) for each in found for run_id, experiment in each.experiments.items()
    }
    try:
        with run(store, kind="audit", name=f"audit of {report.pinned}", tags=tags, params=params) as log:
            _write(log, policy, report, links, command)
    except TrackingError as error:
        if not _is_forbidden(error):
            raise
        raise TrackingError(f"{error}; name an experiment of your own for audits by --experiment") from None
    return log.run_id


def _write(log: RunLog, policy: Policy, report: AuditReport, links: Mapping[str, str], command: str | None) -> None:
    content = report.to_dict()
    # What comes after the run was written is not in it.
    del content["run_id"], content["promotion"], content["notes"], content["exit_code"]
    log.metrics({f"{schema.AUDIT}/{verdict.value}": report.count(verdict) for verdict in Verdict})
    log.text(schema.POLICY, policy.text)
    log.dict(schema.AUDIT_JSON, content)
    page = render_audit(content, links=links, policy=policy.text, command=redact(command or ""))
    log.text(schema.AUDIT_HTML, page)
    log.write_environment()
    log.summary(_summary(report))


def _is_forbidden(error: TrackingError) -> bool:
    cause = error.__context__
    return isinstance(cause, MlflowException) and cause.error_code in _NOT_ALLOWED


def _summary(report: AuditReport) -> str:
    rows = [
        f"| {schema.markdown(rule.title)} | {rule.verdict.value} | {schema.markdown(rule.detail[:500])} |"
        for rule in report.rules
    ]
    subject, policy = schema.markdown(report.pinned), schema.markdown(report.policy)
    head = f"**{report.verdict.value}**: {subject} by the policy {policy}."
    return "\n".join([head, "", "| rule | verdict | why |", "| --- | --- | --- |", *rows])


def _logged(book: Catalogue, store: Store, report: AuditReport, tags: Mapping[str, str], actor: str | None) -> None:
    """Tell the catalogue of the audit: what the version's status was and is, and the seals of what shows it."""
    with store.guarded(f"read the run {report.run_id!r}"):
        sealed = store.client.get_run(report.run_id).data.tags.get(schema.TAG_SHA256)
    before = {"status": tags.get(schema.TAG_AUDIT_STATUS), "run": tags.get(schema.TAG_AUDIT_RUN)}
    after = {
        "status": report.verdict.value,
        "run": report.run_id,
        "run_sha256": sealed,
        "policy_sha256": report.policy_sha256,
        "against": report.against,
    }
    known = before if any(before.values()) else None
    book.append(Action.AUDIT, report.pinned, before=known, after=after, actor=actor, store=store)
    book.record_run(store, report.run_id)


def _tagged(store: Store, subject: ResolvedModel, report: AuditReport) -> Iterator[str]:
    """Tag the version with the audit; yield why that was not so."""
    if subject.version is None:
        yield f"{subject.uri!r} is no registered version, and has no tags of the audit"
        return
    tags = {schema.TAG_AUDIT_STATUS: report.verdict.value, schema.TAG_AUDIT_RUN: report.run_id}
    try:
        with store.guarded(f"tag {subject.uri!r}"):
            for name, value in tags.items():
                store.client.set_model_version_tag(subject.name, subject.version, name, value)
    except TrackingError as error:
        if not _is_forbidden(error):
            raise
        yield f"the version has no tags of the audit: {error}"


def _promoted(
    book: Catalogue,
    store: Store,
    subject: ResolvedModel,
    report: AuditReport,
    alias: str,
    stood: str | None,
    actor: str | None,
) -> Promotion:
    """Move the alias where all has passed and nobody has moved it meanwhile."""
    where = f"models:/{subject.name}@{alias}"
    stays = "is not there" if stood is None else f"still names version {stood}"
    if report.verdict is not Verdict.PASSED:
        return Promotion(alias, False, f"not promoted: {where} {stays}, for the audit is {report.verdict.value}")
    try:
        if (now := _alias_before(store, subject, alias)) != stood:
            moved = f"names version {now}" if now is not None else "is gone"
            return Promotion(alias, False, f"not promoted: {where} {moved} since the audit began; audit again")
        book.move_alias(
            store,
            subject.name,
            alias,
            str(subject.version),
            action=Action.PROMOTE,
            facts={"audit_run": report.run_id, "policy_sha256": report.policy_sha256, "against": report.against},
            actor=actor,
            # Who was faster between this look and the move is seen while others wait.
            expected=stood,
        )
    except InputError as error:
        return Promotion(alias, False, f"not promoted: {error}; audit again")
    except (TrackingError, CatalogueError) as error:
        return Promotion(alias, False, f"not promoted: {error}")
    note = _note_promotion(store, report.run_id, where)
    return Promotion(alias, True, f"promoted: {where} names version {subject.version}{note}")


def _note_promotion(store: Store, run_id: str, where: str) -> str:
    try:
        with store.guarded(f"tag the run {run_id!r}"):
            store.client.set_tag(run_id, schema.TAG_AUDIT_PROMOTED, where)
    except InterpretoError as error:
        # The alias is moved and the log says so: the tag is a convenience.
        return f", which the audit's run does not say: {error}"
    return ""
