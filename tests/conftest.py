"""Shared fixtures: tiny models made from configurations, real ones from beside the checkout, and the data there."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Processes that share the machine's cores do not each need all of them.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before anything imports mlflow or transformers: tests never leave the machine.
os.environ.update(
    HF_HUB_OFFLINE="1",
    MLFLOW_DISABLE_TELEMETRY="true",
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    OMP_WAIT_POLICY="PASSIVE",
    INTERPRETO_MLOPS_CACHE="0",
)

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from interpreto_mlops.models.text_model import TextModel

pytest_plugins = ["tests.llm.scripted_server", "tests.mlflow_stores", "tests.mlflow_ui", "tests.postgres"]

WORDS = (
    "the a this that food service place waiter soup was is were not never very good great bad awful fine cold warm "
    "slow quick and but so we they i loved hated it again here there , . ! ?"
).split()
SIZE = {"vocab_size": 64, "num_labels": 3}
ARCHITECTURES = ("bert", "distilbert", "roberta", "gpt2", "llama")


def word_tokenizer(*, bos: bool = True) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with BERT-like specials (`bos=False`: no template, like a decoder's)."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: i for i, token in enumerate([*specials, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), specials, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **names)


def build(architecture: str, seed: int = 0) -> PreTrainedModel:
    """A tiny classifier of that architecture with random weights large enough for its outputs to differ."""
    small = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel
        if architecture == "bert":
            model = BertForSequenceClassification(BertConfig(**SIZE, **small, max_position_embeddings=32))
        elif architecture == "roberta":
            config = RobertaConfig(**SIZE, **small, max_position_embeddings=40, pad_token_id=0, type_vocab_size=1)
            model = RobertaForSequenceClassification(config)
        elif architecture == "distilbert":
            config = DistilBertConfig(**SIZE, dim=32, n_layers=3, n_heads=4, hidden_dim=48, max_position_embeddings=32)
            model = DistilBertForSequenceClassification(config)
        elif architecture == "gpt2":
            config = GPT2Config(**SIZE, n_embd=32, n_layer=3, n_head=4, n_positions=32, pad_token_id=0)
            model = GPT2ForSequenceClassification(config)
        else:
            config = LlamaConfig(**SIZE, **small, num_key_value_heads=2, max_position_embeddings=32, pad_token_id=0)
            model = LlamaForSequenceClassification(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(6.0)
    return model.eval()


@pytest.fixture
def tiny_model() -> Callable[..., TextModel]:
    """A factory: `tiny_model("gpt2")` is a fresh random classifier (3 layers, width 32, 3 classes)."""

    def make(architecture: str = "bert", seed: int = 0) -> TextModel:
        tokenizer = word_tokenizer(bos=architecture not in {"gpt2", "llama"})
        return TextModel(build(architecture, seed), tokenizer, name="tiny")

    return make


@pytest.fixture
def toy() -> Callable[..., TextModel]:
    """A factory: `toy("tanh")` is a float64 classifier whose explanations are known by calculus or enumeration."""
    from tests.attributions.games import toy as make

    return lambda kind, seed=0: make(kind, word_tokenizer(bos=False), seed)


TEXTS = (
    "The food was great and the service was very quick !",
    "awful soup",
    "We loved it , but the waiter was slow and the place cold .",
    "never again",
    "this is a fine place",
)


@pytest.fixture
def texts() -> list[str]:
    """Five short texts of different lengths in the tiny models' vocabulary."""
    return list(TEXTS)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and small trained models beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"real data and models are not there: no folder {folder}")
    return folder


@pytest.fixture(scope="session")
def cebab_folder(shared: Path) -> Path:
    """The folder of the small trained BERT classifier of restaurant reviews."""
    return shared / "models" / "tiny_bert_cebab"


@pytest.fixture(scope="session")
def cebab_model(cebab_folder: Path) -> TextModel:
    """The small trained BERT classifier of restaurant reviews."""
    model = AutoModelForSequenceClassification.from_pretrained(cebab_folder)
    return TextModel(model, AutoTokenizer.from_pretrained(cebab_folder), name="tiny_bert_cebab")


@pytest.fixture(scope="session")
def cebab_reviews(shared: Path) -> pd.DataFrame:
    """CEBaB's test reviews with a clear majority: columns `text` and `label` (negative, positive)."""
    with zipfile.ZipFile(shared / "data" / "cebab" / "CEBaB-v1.1.zip") as archive:
        frame = pd.read_json(io.BytesIO(archive.read("CEBaB-v1.1/test.json")))
    stars = pd.to_numeric(frame["review_majority"], errors="coerce")
    frame = frame.assign(stars=stars)[stars.isin([1, 2, 4, 5])]
    label = frame["stars"].map(lambda s: "positive" if s > 3 else "negative")
    return pd.DataFrame({"text": frame["description"].astype(str), "label": label}).reset_index(drop=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the quick tests first, and where several processes share the work, those of a file in one of them."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
    for item in items:
        pace = "slow" if item.get_closest_marker("slow") else "quick"
        item.add_marker(pytest.mark.xdist_group(f"{pace} {item.path.name}"))
