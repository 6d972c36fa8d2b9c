"""captum: its methods on token ids and on embeddings, at its defaults and with batches set by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from captum.attr import (
    FeatureAblation,
    GradientShap,
    InputXGradient,
    KernelShap,
    LayerIntegratedGradients,
    Lime,
    LLMAttribution,
    LLMGradientAttribution,
    NoiseTunnel,
    Saliency,
    ShapleyValueSampling,
    TextTokenInput,
)

HAND_SET = "16 rows a call"
Call = Callable[[list[str]], Any]


def classification(model: Any, tokenizer: Any) -> Iterable[tuple[str, str, Call]]:
    """Yield our name of the method, what is special about the setting, and the call."""
    text = _Text(model, tokenizer)
    yield "occlusion", "", text.perturbing(FeatureAblation)
    yield "occlusion", HAND_SET, text.perturbing(FeatureAblation, perturbations_per_eval=16)
    yield "kernel_shap", "", text.perturbing(KernelShap)
    yield (
        "kernel_shap",
        f"512 samples, {HAND_SET}",
        text.perturbing(KernelShap, n_samples=512, perturbations_per_eval=16),
    )
    yield "lime", "", text.perturbing(Lime)
    yield "shapley_sampling", "", text.perturbing(ShapleyValueSampling)
    yield "integrated_gradients", "", text.integrated_gradients
    yield "saliency", "", text.differentiating(Saliency)
    yield "input_x_gradient", "", text.differentiating(InputXGradient)
    yield "gradient_shap", "", text.gradient_shap
    for name, kind in (("smooth_grad", "smoothgrad"), ("square_grad", "smoothgrad_sq"), ("var_grad", "vargrad")):
        yield name, "", text.differentiating(lambda forward: NoiseTunnel(Saliency(forward)), nt_type=kind)


class _Text:
    """What captum leaves to its user: ids, baselines, embeddings, the target."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    def encode(self, text: str) -> tuple[torch.Tensor, torch.Tensor, int]:
        ids = self.tokenizer(text, return_tensors="pt")["input_ids"]
        special = self.tokenizer.get_special_tokens_mask(ids[0].tolist(), already_has_special_tokens=True)
        kept = torch.tensor(special, dtype=torch.bool)[None]
        with torch.inference_mode():
            target = int(self.logits(ids)[0].argmax())
        return ids, ids.masked_fill(~kept, self.tokenizer.mask_token_id), target

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits

    def logits_of(self, embeddings: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(embeddings.shape[:2], dtype=torch.long)
        return self.model(inputs_embeds=embeddings, attention_mask=mask).logits

    def perturbing(self, method: Any, **settings: Any) -> Call:
        def one(text: str) -> Any:
            ids, baseline, target = self.encode(text)
            # One feature a word; the special tokens share one, which its baseline leaves as it is.
            features = (ids != baseline).cumsum(1) * (ids != baseline)
            return method(self.logits).attribute(
                ids, baselines=baseline, target=target, feature_mask=features, **settings
            )

        return lambda texts: [one(text) for text in texts]

    def differentiating(self, method: Any, **settings: Any) -> Call:
        def one(text: str) -> Any:
            ids, _, target = self.encode(text)
            embeddings = self.model.get_input_embeddings()(ids).detach()
            return method(self.logits_of).attribute(embeddings, target=target, **settings).sum(-1)

        return lambda texts: [one(text) for text in texts]

    def integrated_gradients(self, texts: list[str]) -> Any:
        method = LayerIntegratedGradients(self.logits, self.model.get_input_embeddings())
        scores = []
        for text in texts:
            ids, baseline, target = self.encode(text)
            scores.append(method.attribute(ids, baselines=baseline, target=target).sum(-1))
        return scores

    def gradient_shap(self, texts: list[str]) -> Any:
        method, embed, scores = GradientShap(self.logits_of), self.model.get_input_embeddings(), []
        for text in texts:
            ids, baseline, target = self.encode(text)
            e, start = embed(ids).detach(), embed(baseline).detach()
            scores.append(method.attribute(e, baselines=start, target=target).sum(-1))
        return scores


def shapley(model: Any, tokenizer: Any) -> Iterable[tuple[str, Callable[[str, int, int, int], list[float]]]]:
    """Yield what estimates Shapley values of words from (text, target, evaluations, seed)."""
    inside = _Text(model, tokenizer)

    def kernel_shap(text: str, target: int, evaluations: int, seed: int) -> list[float]:
        torch.manual_seed(seed)
        ids, baseline, _ = inside.encode(text)
        words = (ids != baseline)[0]

        def forward(of_words: torch.Tensor) -> torch.Tensor:
            rows = ids.repeat(len(of_words), 1)
            rows[:, words] = of_words
            return inside.logits(rows)

        return (
            KernelShap(forward)
            .attribute(
                ids[:, words],
                baselines=baseline[:, words],
                target=target,
                n_samples=evaluations,
                perturbations_per_eval=16,
            )[0]
            .tolist()
        )

    yield "KernelShap", kernel_shap


def generation(model: Any, tokenizer: Any) -> Iterable[tuple[str, str, Callable[[str, str], Any]]]:
    """Yield method, setting and a call that explains a given continuation."""
    ablation = LLMAttribution(FeatureAblation(model), tokenizer)
    paths = LLMGradientAttribution(LayerIntegratedGradients(model, model.get_input_embeddings()), tokenizer)

    def given(prompt: str, target: str) -> tuple[Any, torch.Tensor]:
        ids = tokenizer(target, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
        return TextTokenInput(prompt, tokenizer, baselines=tokenizer.eos_token_id), ids

    def occlusion(prompt: str, target: str) -> Any:
        prompt_input, ids = given(prompt, target)
        # With its cache the scores are wrong under transformers 5.
        return ablation.attribute(prompt_input, target=ids, use_cached_outputs=False).token_attr

    def integrated_gradients(prompt: str, target: str) -> Any:
        prompt_input, ids = given(prompt, target)
        return paths.attribute(prompt_input, target=ids).token_attr

    yield "occlusion", "", occlusion
    yield "integrated_gradients", "", integrated_gradients
