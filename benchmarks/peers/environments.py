"""An environment for each library to compare with, under `.benchmarks/`, on the project's own torch and transformers.

Each is a virtual environment that sees the packages of the running one behind its own, so that all libraries run on
the same torch, and a library that needs an older release of something has it for itself.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / ".benchmarks"

PEERS = {
    "captum": "captum==0.9.0",
    "dictionary_learning": "dictionary-learning==0.1.0",
    "inseq": "inseq==0.7.1",
    "interpreto": "interpreto==0.5.2",
    "lime": "lime==0.2.0.1",
    "sae_lens": "sae-lens==6.54.12",
    "shap": "shap==0.51.0",
}
"""The libraries by the module that they are imported as. All install with their dependencies; none may move torch."""

HELD = ("torch", "transformers")
# nnsight 0.3 asks for torchvision, whose release in the registry does not fit a CPU build of torch.
REMOVED = {"dictionary_learning": ("torchvision",)}


def environment(name: str) -> tuple[str | None, str]:
    """Make or reuse the environment of a library; return its Python, or None, and why there is none."""
    folder = FOLDER / name
    python = folder / "bin" / "python"
    held = [f"{package}=={importlib.metadata.version(package).split('+')[0]}" for package in HELD]
    wanted = " ".join([sys.version.split()[0], PEERS[name], *held])
    made = folder / "made-for"
    if made.exists() and made.read_text() == wanted:
        return str(python), ""
    venv.create(folder, with_pip=True, clear=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "_project.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    done = subprocess.run([*pip, PEERS[name], *held], capture_output=True, text=True)
    (folder / "install.log").write_text(done.stdout + done.stderr)
    if done.returncode:
        return None, _last_error(done.stderr)
    for package in REMOVED.get(name, ()):
        subprocess.run([*pip[:3], "--disable-pip-version-check", "uninstall", "--yes", "--quiet", package], check=True)
    made.write_text(wanted)
    return str(python), ""


def _last_error(log: str) -> str:
    errors = [line for line in log.splitlines() if line.startswith("ERROR")]
    return (errors or log.splitlines() or ["pip failed"])[-1]
