"""Questions to language models as MLflow traces, one for each call."""

from __future__ import annotations

import base64
import json
import logging
import secrets
import threading
from typing import Any

from mlflow.entities import Span, SpanType, TraceInfo, TraceState
from mlflow.entities.trace_location import TraceLocation

from interpreto_mlops.errors import TrackingError
from interpreto_mlops.llm.base import Answer, Price, Prompt
from interpreto_mlops.llm.questioner import Call
from interpreto_mlops.text.hiding import hidden, storable, texts_are_hidden
from interpreto_mlops.text.redaction import redact
from interpreto_mlops.tracking import _mlflow_private, schema
from interpreto_mlops.tracking.store import Store, current_store_for

_log = logging.getLogger(__name__)
_PREVIEW = 1000


class TraceLog:
    """Writes a trace for each call that it is told of, from any thread; what MLflow cannot take stops nothing.

    Arguments:
        store: where traces go; they are written to it directly, so the process's own tracing stays as it is.
        run_id: of the run that the traces belong to; None for none.
        price: of the model's tokens, for the traces' cost; None where it is not known.
    """

    def __init__(self, store: Store, run_id: str | None = None, *, price: Price | None = None) -> None:
        self.store, self.run_id, self.price = store, run_id, price
        self.written = 0
        """How many traces are in the store."""
        self._lock = threading.Lock()
        self._told = False

    def __call__(self, call: Call) -> None:
        """Write the trace of a call."""
        info, span = self._trace(call)
        with self._lock:
            try:
                with self.store.guarded("record a trace"):
                    _mlflow_private.record_trace(self.store.tracking_uri, info, span)
                self.written += 1
            except TrackingError as error:
                # The answer is paid for, whatever becomes of its trace.
                if not self._told:
                    _log.warning("a call to a language model has no trace; this is said once: %s", error)
                self._told = True

    def _trace(self, call: Call) -> tuple[TraceInfo, Span]:
        identifier = secrets.token_bytes(16)
        name, answer = f"tr-{identifier.hex()}", call.outcome if isinstance(call.outcome, Answer) else None
        asked, answered = _inputs(call.prompt), _outputs(call)
        metadata = {schema.TRACE_SCHEMA: "3", **({schema.TRACE_RUN: self.run_id} if self.run_id else {})}
        metadata.update({} if answer is None else self._spent(answer, schema.TRACE_USAGE, schema.TRACE_COST))
        info = TraceInfo(
            trace_id=name,
            trace_location=TraceLocation.from_experiment_id(self.store.experiment_id),
            request_time=call.started // 1_000_000,
            execution_duration=(call.ended - call.started) // 1_000_000,
            state=TraceState.OK if answer else TraceState.ERROR,
            request_preview=asked["messages"][-1]["content"][:_PREVIEW],
            response_preview=str(answered.get("content", ""))[:_PREVIEW],
            trace_metadata=metadata,
            tags={schema.TRACE_NAME: f"ask {call.model}"},
        )
        attributes = {
            schema.SPAN_TRACE: json.dumps(name),
            schema.SPAN_TYPE: json.dumps(SpanType.CHAT_MODEL),
            schema.SPAN_INPUTS: json.dumps(asked),
            schema.SPAN_OUTPUTS: json.dumps(answered),
            schema.SPAN_MODEL: json.dumps(call.model),
            schema.SPAN_ATTEMPTS: json.dumps(call.attempts),
            **({} if answer is None else self._spent(answer, schema.SPAN_USAGE, schema.SPAN_COST)),
        }
        return info, Span.from_dict(_span(call, identifier, attributes))

    def _spent(self, answer: Answer, usage: str, cost: str) -> dict[str, str]:
        read, written = answer.prompt_tokens, answer.answer_tokens
        found: dict[str, dict[str, float]] = {
            usage: {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}
        }
        if self.price is not None:
            parts = self.price.of(read, 0), self.price.of(0, written)
            found[cost] = {"input_cost": parts[0], "output_cost": parts[1], "total_cost": sum(parts)}
        return {name: json.dumps(value) for name, value in found.items()}


def traced(store: Store | None = None, *, run_id: str | None = None, price: Price | None = None) -> TraceLog:
    """Return what records each call of a `Questioner` as an MLflow trace: `Questioner(…, observe=traced())`.

    Where texts are hidden, traces hold hashes in place of questions and answers.

    Arguments:
        store: where traces go; None for the store and experiment that `mlflow.start_run` would use now.
        run_id: of the run that they belong to; with `store=None` the open run, where there is one.
        price: of the model's tokens, for the traces' cost; None where it is not known.

    Raises:
        TrackingError: the store does not answer.
    """
    if store is None:
        store, run_id = current_store_for(run_id)
    return TraceLog(store, run_id, price=price)


def _shown(text: str) -> str:
    return hidden(text) if texts_are_hidden() else storable(text)


def _inputs(prompt: Prompt) -> dict[str, Any]:
    both = {"system": prompt.system, "user": prompt.user}
    messages = [{"role": role, "content": _shown(text)} for role, text in both.items() if text or role == "user"]
    return {
        "messages": messages,
        "max_tokens": prompt.max_tokens,
        "temperature": prompt.temperature,
        "seed": prompt.seed,
        "sha256": prompt.sha256,
    }


def _outputs(call: Call) -> dict[str, Any]:
    if isinstance(call.outcome, Answer):
        return {"role": "assistant", "content": _shown(call.outcome.text), "finish_reason": call.outcome.finish}
    return {"error": _error(call)}


def _error(call: Call) -> str:
    return f"{type(call.outcome).__name__}: {storable(redact(str(call.outcome)))}"


def _span(call: Call, identifier: bytes, attributes: dict[str, str]) -> dict[str, Any]:
    right = isinstance(call.outcome, Answer)
    return {
        "trace_id": base64.b64encode(identifier).decode(),
        "span_id": base64.b64encode(secrets.token_bytes(8)).decode(),
        "parent_span_id": None,
        "name": f"ask {call.model}",
        "start_time_unix_nano": call.started,
        "end_time_unix_nano": call.ended,
        "events": [],
        "status": {
            "code": "STATUS_CODE_OK" if right else "STATUS_CODE_ERROR",
            "message": "" if right else _error(call),
        },
        "attributes": attributes,
    }
