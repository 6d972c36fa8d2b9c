"""The catalogue: a database beside MLflow for what MLflow cannot answer, with an append-only log of who did what."""

from __future__ import annotations

from interpreto_mlops.audit.catalogue.catalogue import Catalogue
from interpreto_mlops.audit.catalogue.log import Action, LogEntry, LogVerdict
from interpreto_mlops.audit.catalogue.questions import QUESTIONS, Parameter, parameters
from interpreto_mlops.audit.catalogue.rebuilding import Rebuilt

__all__ = ["QUESTIONS", "Action", "Catalogue", "LogEntry", "LogVerdict", "Parameter", "Rebuilt", "parameters"]
