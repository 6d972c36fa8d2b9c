"""Make `requirements.lock` from `pyproject.toml` with pip's own resolver, once for each Python that is supported."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.11", "3.12")

# One release of torch for every Python and accelerator: builds of it differ in the local version (+cpu, +cu130) only.
HELD = {"torch": "2.13.0"}

# Asks for an image stack that text never uses, so its other requirements are resolved in its place.
PRUNED = "overcomplete"
VISION = frozenset({"opencv-python", "scikit-image", "timm", "torchvision"})

# What a CUDA build of torch brings depends on the build, so torch is installed with its own requirements.
ACCELERATOR_PREFIXES = ("cuda-", "nvidia-", "triton")

HEADER = """\
# Every package that the project and its [dev] extra need, pinned, for Python {pythons} on Linux.
# Made from pyproject.toml by `make lock` (tools/lock.py); do not edit by hand. To install from it, in this order:
#   pip install -c requirements.lock torch=={torch}     torch, with what this build of torch needs
#   pip install --no-deps -r requirements.lock
#   pip install --no-deps -e .
#
# Left out on purpose, which is why --no-deps is needed:
#   {vision}: overcomplete {pruned} asks for them, but only for images. A torchvision
#   built for CUDA beside a CPU build of torch makes `import transformers` fail ("operator torchvision::nms does not
#   exist").
#   {accelerator}: they belong to one build of torch, and the first command above installs them where needed.
"""


def read_requirements(pyproject: Path) -> list[Requirement]:
    """The project's requirements and those of all its extras."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra in project.get("optional-dependencies", {}).values():
        lines += extra
    return [Requirement(line) for line in lines]


def find_interpreters(given: list[str]) -> dict[str, str]:
    """The interpreter of each supported Python, by asking each candidate for its version."""
    found: dict[str, str] = {}
    for candidate in given or [f"python{version}" for version in PYTHONS] + ["python3"]:
        if (path := shutil.which(candidate)) is None:
            continue
        code = "import sys, ensurepip; print('%d.%d' % sys.version_info[:2])"
        answer = subprocess.run([path, "-c", code], capture_output=True, text=True)
        if answer.returncode == 0:
            found.setdefault(answer.stdout.strip(), path)
    if missing := [version for version in PYTHONS if version not in found]:
        sys.exit(f"no working interpreter for Python {', '.join(missing)}: give one with --python PATH for each")
    return {version: found[version] for version in PYTHONS}


class Resolver:
    """pip in a throw-away environment: the newest, because older ones download torch to read what it needs."""

    def __init__(self, interpreter: str, folder: Path) -> None:
        subprocess.run([interpreter, "-m", "venv", folder], check=True)
        self.python, self.report = folder / "bin" / "python", folder / "report.json"
        self.pip("install", "--upgrade", "pip")

    def pip(self, *arguments: str) -> None:
        if (status := subprocess.run([self.python, "-m", "pip", "--quiet", *arguments]).returncode) != 0:
            sys.exit(f"pip could not do this (exit code {status}): pip {' '.join(arguments)}")

    def resolve(self, requirements: list[Requirement], *options: str) -> dict[str, dict[str, object]]:
        """The metadata of what pip would install for these requirements, by canonical name."""
        lines = [str(requirement) for requirement in requirements]
        self.pip("install", "--dry-run", "--ignore-installed", "--report", str(self.report), *options, *lines)
        chosen = [entry["metadata"] for entry in json.loads(self.report.read_text(encoding="utf-8"))["install"]]
        return {canonicalize_name(metadata["name"]): metadata for metadata in chosen}


def prune(requirements: list[Requirement], resolver: Resolver) -> tuple[list[Requirement], str]:
    """Put what the pruned package needs beside images in its place, and give its pin."""
    kept = [each for each in requirements if canonicalize_name(each.name) != PRUNED]
    asked = [each for each in requirements if canonicalize_name(each.name) == PRUNED]
    metadata = resolver.resolve(asked, "--no-deps")[PRUNED]
    needs = [Requirement(line) for line in metadata["requires_dist"]]  # type: ignore[attr-defined]
    kept += [each for each in needs if canonicalize_name(each.name) not in VISION and each.marker is None]
    return kept, str(metadata["version"])


def pins_for(resolver: Resolver, requirements: list[Requirement]) -> dict[str, str]:
    """The version of each package for one Python, without local parts such as `+cpu`."""
    kept, pruned_version = prune(requirements, resolver)
    held = [Requirement(f"{name}=={version}") for name, version in HELD.items()]
    pins = {name: Version(str(m["version"])).public for name, m in resolver.resolve(kept + held).items()}
    if unwanted := VISION & pins.keys():
        sys.exit(f"{', '.join(sorted(unwanted))} came back into the lock: find which package asks for it")
    pins[PRUNED] = pruned_version
    return {name: version for name, version in pins.items() if not name.startswith(ACCELERATOR_PREFIXES)}


def marker(pythons: tuple[str, ...]) -> str:
    """The environment marker that holds for exactly these of the supported Pythons."""
    first, last = PYTHONS.index(pythons[0]), PYTHONS.index(pythons[-1])
    if pythons != PYTHONS[first : last + 1]:
        return " or ".join(f'python_version == "{version}"' for version in pythons)
    bounds = [f'python_version >= "{pythons[0]}"'] if first else []
    bounds += [f'python_version < "{PYTHONS[last + 1]}"'] if last + 1 < len(PYTHONS) else []
    return " and ".join(bounds)


def merge(pins: dict[str, dict[str, str]]) -> list[str]:
    """One line for each package and version, with a marker where the Pythons differ."""
    lines = []
    for name in sorted(set().union(*pins.values())):
        versions = {pins[python][name] for python in PYTHONS if name in pins[python]}
        for version in sorted(versions, key=Version):
            pythons = tuple(python for python in PYTHONS if pins[python].get(name) == version)
            condition = marker(pythons)
            lines.append(f"{name}=={version} ; {condition}" if condition else f"{name}=={version}")
    return lines


def header(pins: dict[str, str]) -> str:
    """The head of the lock, which says what is left out and why."""
    return HEADER.format(
        pythons=", ".join(PYTHONS),
        torch=HELD["torch"],
        vision=", ".join(sorted(VISION)),
        pruned=pins[PRUNED],
        accelerator=", ".join(f"{prefix}*" for prefix in ACCELERATOR_PREFIXES),
    )


def main() -> None:
    """Resolve for every Python and write the lock."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", action="append", default=[], metavar="PATH", help="an interpreter; repeat for each")
    parser.add_argument("--output", type=Path, default=ROOT / "requirements.lock", help="where to write")
    arguments = parser.parse_args()
    interpreters = find_interpreters(arguments.python)
    requirements = read_requirements(ROOT / "pyproject.toml")
    pins: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for version, interpreter in interpreters.items():
            print(f"resolving for Python {version} with {interpreter}", file=sys.stderr)
            pins[version] = pins_for(Resolver(interpreter, Path(folder) / version), requirements)
    lines = merge(pins)
    arguments.output.write_text(header(pins[PYTHONS[-1]]) + "\n" + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{arguments.output}: {len(lines)} pins", file=sys.stderr)


if __name__ == "__main__":
    main()
