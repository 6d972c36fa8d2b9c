"""Time of attribution methods over the floor: the bare model on the same token sequences, in batches of one length.

    python benchmarks/attributions.py --texts 8 --methods occlusion,kernel_shap

The model is a BERT of 6 layers and width 384 with random weights; the texts are random words, 20 to 60 tokens long. The
floor of a method is measured in the same process, beside it: every row that the method ran, at the best rate that the
bare model reaches for rows of that length under any of several batch sizes. Times are CPU seconds of the process, which
other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from interpreto_mlops.attributions import METHODS
from interpreto_mlops.models.text_model import TextModel

BUDGETS = (512, 1024, 2048)
WORDS = 2000


def build() -> TextModel:
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: i for i, token in enumerate([*specials, *(f"word{i}" for i in range(WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), specials, strict=True))
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=6,
        intermediate_size=1536,
        max_position_embeddings=128,
    )
    torch.manual_seed(0)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **names)
    return TextModel(BertForSequenceClassification(config).eval(), fast, name="bert-6x384")


def texts(count: int) -> list[str]:
    rng = random.Random(0)
    return [" ".join(f"word{rng.randrange(WORDS)}" for _ in range(rng.randint(18, 58))) for _ in range(count)]


def lengths_of(model: TextModel, call) -> Counter[int]:
    """The lengths of the rows that the model sees during a call."""
    seen: Counter[int] = Counter()

    def note(_module, _args, kwargs) -> None:
        seen.update(kwargs["attention_mask"].sum(-1).tolist())

    handle = model.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        call()
    finally:
        handle.remove()
    return seen


def rate(model: TextModel, length: int, gradients: bool, rounds: int) -> float:
    """The least CPU seconds a row of that length takes in the bare model, over batch sizes."""
    best = float("inf")
    for budget in BUDGETS:
        rows = max(1, budget // length)
        ids = torch.randint(5, WORDS, (rows, length))
        mask = torch.ones_like(ids)
        for _ in range(rounds):
            start = time.process_time()
            if gradients:
                embeddings = model.embedding(ids).detach().requires_grad_(True)
                logits = model.model(inputs_embeds=embeddings, attention_mask=mask).logits
                torch.autograd.grad(logits[:, 0].sum(), embeddings)
            else:
                with torch.inference_mode():
                    model.model(input_ids=ids, attention_mask=mask)
            best = min(best, (time.process_time() - start) / rows)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--methods", default="occlusion,kernel_shap,integrated_gradients")
    parser.add_argument("--rounds", type=int, default=3, help="timings of each bare batch; the best counts")
    parser.add_argument("--threads", type=int, help="of torch; by default its own choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    model, given = build(), texts(options.texts)
    print(f"{model.name}, {len(given)} texts, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'method':22}{'evaluations':>12}{'seconds':>9}{'floor':>9}{'ratio':>7}{'padding':>9}")
    for name in options.methods.split(","):
        explainer = METHODS.get(name)(model)
        gradients = name == "integrated_gradients"
        rows = lengths_of(model, lambda explainer=explainer: explainer(given))
        before = model.engine.counters.copy()
        start = time.process_time()
        explainer(given)
        seconds = time.process_time() - start
        done = model.engine.counters.since(before)
        # The two coalitions at the ends of a gradient method have no backward pass; they are too few to matter.
        floor = sum(count * rate(model, length, gradients, options.rounds) for length, count in sorted(rows.items()))
        padding = done.padding / max(1, done.tokens)
        print(
            f"{name:22}{done.evaluations_run:12}{seconds:9.2f}{floor:9.2f}{seconds / floor:7.2f}{padding:9.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
