"""Quality of sparse autoencoders beside other libraries: R² at equal L0, dead concepts, CPU seconds.

    python benchmarks/sae_quality.py --write               # docs/benchmarks.md
    python benchmarks/sae_quality.py --peers none --quick  # ours on a small layer, in seconds

All get the same rows in the same order, as many steps, the same batch, the same number of concepts and the same k; rows
are centred and divided by one scale beforehand, for some of the libraries do not do it. Ours runs at its defaults; the
others at the settings in their files under `peers/`, of which the best on the held-out rows is shown, beside their
default. Activations are those of the quickstart's own classifier, or of a file (`--activations`, a
safetensors file with `train` and `held_out`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch
from peers.environments import PEERS, environment
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
OWN = "interpreto_mlops"
LIBRARIES = ("overcomplete", "sae_lens", "dictionary_learning")
FAMILIES = ("topk_sae", "batchtopk_sae")
LAYER = 1


def activations(path: Path, *, epochs: int = 3, texts: int = 2500) -> Path:
    """Write rows of the quickstart's classifier, centred and scaled, as `train` and `held_out`."""
    from interpreto_mlops.concepts import ModelWithSplitPoints
    from interpreto_mlops.models.text_model import TextModel
    from interpreto_mlops.text.library_docs import library_docs
    from interpreto_mlops.workflows.classifier import train_classifier

    train, test = library_docs("train"), library_docs("test")
    trained = train_classifier(train, test, epochs=epochs)
    model = TextModel(trained.model, trained.tokenizer, name="library-docs")
    split = ModelWithSplitPoints(model, split_points=[LAYER])
    parts = {
        name: split.get_activations(data.texts[:texts], progress=False)[LAYER].tensor()
        for name, data in (("train", train), ("held_out", test))
    }
    mean = parts["train"].mean(dim=0)
    scale = (parts["train"] - mean).square().mean().sqrt()
    save_file({name: ((rows - mean) / scale).contiguous() for name, rows in parts.items()}, path)
    return path


def job(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What every library does."""
    rows = load_file(path)["train"]
    steps = options.rows // options.batch
    return {
        "kind": "sae",
        "activations": str(path),
        "families": list(FAMILIES),
        "width": rows.shape[1],
        "concepts": options.concepts,
        "k": options.k,
        "batch": options.batch,
        "steps": steps,
        "warm_up": max(1, steps // 20),
        "decay": max(1, steps // 5),
        "dead_after": 10_000,
        "seeds": list(range(options.seeds)),
        "threads": options.threads,
    }


def run(library: str, given: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Run one library's part in a process of its own."""
    python, why = (sys.executable, "") if library not in PEERS else environment(library)
    if python is None:
        return [{"library": library, "failed": f"cannot be installed: {why}"}]
    module = "own_sae" if library == OWN else library
    asked, answer = folder / f"{library}.json", folder / f"{library}-result.json"
    asked.write_text(json.dumps({**given, "library": module}))
    environ = {
        **os.environ,
        "OMP_NUM_THREADS": str(given["threads"]),
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    environ["WANDB_MODE"] = "disabled"
    environ.pop("PYTHONPATH", None)
    if library == OWN:
        environ["PYTHONPATH"] = str(HERE.parent)
    command = [python, str(HERE / "peers" / "run_peer.py"), str(asked), str(answer)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    print(f"{library}: {'done' if done.returncode == 0 else done.stderr[-2000:]}", flush=True)
    found = json.loads(answer.read_text()) if answer.exists() else [{"failed": done.stderr.strip()[-200:]}]
    return [{"library": library, **record} for record in found]


def rows_of(records: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of the table: for each method and library the default setting, and the best one where that is another."""
    out: list[tuple[str, ...]] = []
    for method in sorted({r["method"] for r in records if "method" in r}):
        for library in (OWN, *LIBRARIES):
            groups: dict[str, list[dict[str, Any]]] = {}
            for r in records:
                if (r["library"], r.get("method")) == (library, method) and "failed" not in r:
                    groups.setdefault(json.dumps(r["setting"]), []).append(r)
            means = {
                key: {n: float(np.mean([r[n] for r in g])) for n in ("r2", "l0", "dead", "cpu")}
                for key, g in groups.items()
            }
            if not means:
                continue
            default, best = next(iter(means)), max(means, key=lambda key: means[key]["r2"])
            for key in dict.fromkeys((default, best)):
                m = means[key]
                label = " ".join(f"{n} {v}" for n, v in json.loads(key).items() if v is not None) or "default"
                note = "" if len(means) == 1 else (" (best)" if key == best else "")
                out.append(
                    (
                        method,
                        library,
                        label + note,
                        f"{m['r2']:.4f}",
                        f"{m['l0']:.1f}",
                        f"{m['dead']:.1%}",
                        f"{m['cpu']:.1f}",
                    )
                )
    failed = [r for r in records if "failed" in r]
    out += [
        (r.get("method", "all"), r["library"], str(r.get("setting", "")), f"not run: {r['failed']}", "", "", "")
        for r in failed
    ]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--activations", type=Path, help="a safetensors file with `train` and `held_out`")
    parser.add_argument("--concepts", type=int, default=512)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows shown in training, repetitions included")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument(
        "--peers", type=lambda text: [n for n in text.split(",") if n != "none"], default=list(LIBRARIES)
    )
    parser.add_argument("--quick", action="store_true", help="few rows, to see that all runs")
    parser.add_argument("--json", type=Path, help="write the records to this file")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.batch, options.seeds, options.concepts = 8192, 256, 1, 64
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(options.jobs) as pool:
        folder = Path(name)
        path = options.activations or _small(folder, options.quick) or activations(folder / "rows.safetensors")
        given = job(path, options)
        done = pool.map(lambda library: run(library, given, folder), [OWN, *options.peers])
        records = [record for each in done for record in each]
        shape = tuple(load_file(path)["train"].shape)
    head = ("method", "library", "setting", "held-out R²", "L0", "dead", "CPU s")
    what = (
        f"{shape[0]:,} rows of width {shape[1]}, {given['steps']:,} steps of {options.batch} rows, {options.concepts} "
        f"concepts, k = {options.k}, means of {options.seeds} seeds; dead: on none of the training rows."
    )
    known = report.machine(report.facts(options.threads, options.jobs))
    text = "\n\n".join([known, what, report.table(head, rows_of(records))])
    print(text)
    if options.json:
        options.json.write_text(json.dumps(records, indent=1))
    if options.write:
        report.write("sae-quality", text)
    if failed := [r for r in records if r["library"] == OWN and "failed" in r]:
        sys.exit(f"failed: {failed}")


def _small(folder: Path, quick: bool) -> Path | None:
    if not quick:
        return None
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(24, 16, generator=generator)
    rows = (torch.rand(3000, 24, generator=generator) * (torch.rand(3000, 24, generator=generator) < 0.1)) @ mixing
    save_file({"train": rows[:2500].contiguous(), "held_out": rows[2500:].contiguous()}, folder / "rows.safetensors")
    return folder / "rows.safetensors"


if __name__ == "__main__":
    main()
