"""The evaluator plug-in of `mlflow.models.evaluate`: MLflow imports this module whenever it lists its evaluators."""

from __future__ import annotations

from typing import Any

from mlflow.models.evaluation import EvaluationDataset, EvaluationResult, ModelEvaluator

from interpreto_mlops.tracking._mlflow_private import evaluation_asks_for
from interpreto_mlops.tracking.evaluator_config import is_meant

MODEL_TYPES = (
    "classifier",
    "question-answering",
    "text",
    "text-classification",
    "text-classifier",
    "text-generation",
    "text-summarization",
    "token-classification",
)


class InterpretoEvaluator(ModelEvaluator):
    """Explains the evaluated text model by attributions, and returns how faithful they are.

    It is asked for by name: `evaluators="interpreto"`, or in a list of them, or `evaluator_config={"interpreto": {…}}`.
    It takes part in no other evaluation. Keys of its configuration: see `EvaluatorConfig`.
    """

    name = "interpreto"

    @classmethod
    def can_evaluate(cls, *, model_type: str | None, evaluator_config: dict[str, Any] | None, **kwargs: Any) -> bool:
        """Return whether it takes part: a model of texts, and the user asked for it."""
        asked = evaluation_asks_for(cls.name)
        return model_type in MODEL_TYPES and (is_meant(evaluator_config) if asked is None else asked)

    def evaluate(
        self,
        *,
        model_type: str | None,
        dataset: EvaluationDataset,
        run_id: str,
        evaluator_config: dict[str, Any] | None,
        model: Any = None,
        model_id: str | None = None,
        **kwargs: Any,
    ) -> EvaluationResult:
        """Explain the texts, score the explanations, and log both to the run of the evaluation.

        Arguments:
            model_type: one of `MODEL_TYPES`.
            dataset: whose features hold the texts.
            run_id: of the evaluation.
            evaluator_config: see `EvaluatorConfig`.
            model: the `PyFuncModel` that is evaluated: of the transformers flavor, or one that holds a pipeline.
            model_id: the logged model to which MLflow links the metrics, or None.
            kwargs: what other evaluators need.

        Returns:
            Metrics by the run schema's names, and as artifacts the page `attributions` and the table `examples`.

        Raises:
            InputError: a key or value that the configuration cannot have, no texts, no transformers model, or a run
                that already holds attributions.
            TrackingError: the store fails.
        """
        from interpreto_mlops.tracking.evaluation import evaluate_model

        return evaluate_model(model, dataset, run_id=run_id, model_id=model_id, config=evaluator_config)
