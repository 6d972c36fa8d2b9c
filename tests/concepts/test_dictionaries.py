"""Every family of dictionaries keeps the same promises; a new one is tested by being registered."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import interpreto_mlops.concepts as concepts
from interpreto_mlops.concepts import DICTIONARIES, ConceptDictionary, PCAConcepts, TopKSAEConcepts, fit_together
from interpreto_mlops.concepts.interpretation import ConceptDescription, Context, Word
from interpreto_mlops.concepts.training import DataFacts, Learner
from interpreto_mlops.errors import InputError, IntegrityError, NotFittedError, UnknownNameError

WIDTH, N_ROWS, N_CONCEPTS = 12, 600, 8
# What a family needs beyond the number of concepts to be small and quick here.
SMALL: dict[str, dict[str, Any]] = {
    "batchtopk_sae": {"k": 3, "n_epochs": 12, "batch_size": 64},
    "dictionary_learning": {"n_epochs": 3, "batch_size": 64},
    "ica": {"max_iter": 2000, "tol": 0.01},  # two components are noise, and FastICA is long in turning them
    "jumprelu_sae": {"n_epochs": 12, "batch_size": 64},
    "mp_sae": {"k": 3, "n_epochs": 12, "batch_size": 64},
    "ra_topk_sae": {"k": 3, "n_epochs": 12, "batch_size": 64},
    "sparse_pca": {"tol": 1e-4},
    "topk_sae": {"k": 3, "n_epochs": 12, "batch_size": 64},
    "vanilla_sae": {"n_epochs": 12, "batch_size": 64},
}
FAMILIES = DICTIONARIES.names()
# Their directions are as long as something is far; all others have directions of norm 1.
OF_ANY_LENGTH = {"kmeans", "ra_topk_sae"}


def n_concepts_of(name: str) -> int:
    return N_CONCEPTS if DICTIONARIES.get(name).sized else WIDTH


def build(name: str, **parameters: Any) -> ConceptDictionary:
    return DICTIONARIES.get(name)(**{"n_concepts": n_concepts_of(name), **SMALL.get(name, {}), **parameters})


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    """Correlated rows far from the origin."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, WIDTH, generator=generator)
    sparse = torch.rand(N_ROWS, 6, generator=generator) * (torch.rand(N_ROWS, 6, generator=generator) < 0.4)
    noise = 0.05 * torch.randn(N_ROWS, WIDTH, generator=generator)
    return sparse @ mixing + noise + 5.0


@pytest.fixture(scope="module")
def fitted(rows: torch.Tensor) -> Callable[[str], ConceptDictionary]:
    """A factory of dictionaries fitted on the rows; each call returns a copy."""
    cache = {name: build(name).fit(rows, progress=False) for name in FAMILIES}
    return lambda name: copy.deepcopy(cache[name])


every_family = pytest.mark.parametrize("name", FAMILIES)


def test_every_registered_class_can_be_imported_by_its_name() -> None:
    for name, family in DICTIONARIES.items():
        assert getattr(concepts, family.__name__) is family
        assert family.__name__ in concepts.__all__
        assert family.name == name
    assert concepts.__all__ == sorted(concepts.__all__)


@every_family
def test_shapes(name: str, rows: torch.Tensor, fitted: Callable[[str], ConceptDictionary]) -> None:
    dictionary = fitted(name)
    codes = dictionary.encode(rows)
    assert codes.shape == (N_ROWS, n_concepts_of(name))
    assert codes.dtype == torch.float32
    assert not codes.requires_grad
    assert dictionary.decode(codes).shape == rows.shape
    assert dictionary.dictionary.shape == (n_concepts_of(name), WIDTH)
    assert dictionary.width == WIDTH


@every_family
def test_unsigned_codes_are_not_negative(
    name: str, rows: torch.Tensor, fitted: Callable[[str], ConceptDictionary]
) -> None:
    dictionary = fitted(name)
    if dictionary.signed:
        rows = rows - 10.0
    assert dictionary.signed == bool((dictionary.encode(rows) < 0).any())


@every_family
def test_the_same_seed_gives_the_same_dictionary(
    name: str, rows: torch.Tensor, fitted: Callable[[str], ConceptDictionary]
) -> None:
    again = build(name).fit(rows, progress=False)
    assert torch.equal(again.dictionary, fitted(name).dictionary)
    assert torch.equal(again.encode(rows), fitted(name).encode(rows))


@every_family
def test_a_learner_goes_on_from_its_state_to_the_bit(name: str, rows: torch.Tensor) -> None:
    facts = DataFacts(len(rows), rows.double().mean(0).numpy(), rows.double().var(0, correction=0).numpy())
    whole, stopped, resumed = (build(name).begin(facts) for _ in range(3))
    shown = [block for _ in range(min(3, whole.n_passes)) for block in rows.split(97)]
    stop = len(shown) // 2

    def show(learner: Learner, part: list[torch.Tensor]) -> None:
        for block in part:
            learner.observe(block)
            if len(block) < 97:  # the last of a pass
                learner.end_pass()

    show(whole, shown)
    show(stopped, shown[:stop])
    resumed.restore(stopped.state())
    show(stopped, shown[stop:])  # what it goes on to do is nobody else's
    show(resumed, shown[stop:])
    expected, found = whole.finish(), resumed.finish()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert all(torch.equal(expected[key], tensor) for key, tensor in stopped.finish().items())


@every_family
def test_fitting_leaves_the_global_generators_alone(name: str, rows: torch.Tensor) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    build(name, seed=3).fit(rows, progress=False)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert all(np.array_equal(a, b) for a, b in zip(numpy_state, np.random.get_state(), strict=True))


@every_family
def test_a_row_has_the_same_code_alone_and_in_any_batch(
    name: str, rows: torch.Tensor, fitted: Callable[[str], ConceptDictionary]
) -> None:
    dictionary = fitted(name)
    together = dictionary.encode(rows)
    alone = torch.cat([dictionary.encode(rows[i : i + 1]) for i in range(100)])
    torch.testing.assert_close(alone, together[:100], rtol=0, atol=1e-6)
    torch.testing.assert_close(dictionary.encode(rows.flip(0)).flip(0), together, rtol=0, atol=1e-6)
    assert torch.equal(dictionary.encode(rows.numpy()), together)


@every_family
def test_chunks_are_the_whole(
    name: str, rows: torch.Tensor, fitted: Callable[[str], ConceptDictionary], monkeypatch: pytest.MonkeyPatch
) -> None:
    dictionary = fitted(name)
    whole = dictionary.encode(rows)
    monkeypatch.setattr("interpreto_mlops.concepts.base._CHUNK_NUMBERS", 7 * (n_concepts_of(name) + WIDTH))
    chunks = list(dictionary.encode_chunks(rows))
    assert max(len(part) for part, _ in chunks) == 7
    assert torch.equal(torch.cat([part for part, _ in chunks]), rows)
    torch.testing.assert_close(torch.cat([codes for _, codes in chunks]), whole, rtol=0, atol=1e-6)


@every_family
def test_codes_are_the_same_in_a_thread(
    name: str, rows: torch.Tensor, fitted: Callable[[str], ConceptDictionary]
) -> None:
    dictionary = fitted(name)
    found: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: found.append(dictionary.encode(rows)))
    thread.start()
    thread.join()
    assert torch.equal(found[0], dictionary.encode(rows))


def test_codes_are_the_same_in_a_worker(
    rows: torch.Tensor, fitted: Callable[[str], ConceptDictionary], tmp_path: Path
) -> None:
    """Another process, which knows nothing but the folders, encodes all families to the same bytes."""
    torch.save(rows, tmp_path / "rows.pt")
    for name in FAMILIES:
        fitted(name).save(tmp_path / name)
    script = """
        import sys, torch
        from pathlib import Path
        from interpreto_mlops.concepts import ConceptDictionary
        folder = Path(sys.argv[1])
        rows = torch.load(folder / "rows.pt", weights_only=True)
        for name in sys.argv[2:]:
            torch.save(ConceptDictionary.load(folder / name).encode(rows), folder / f"{name}.pt")
    """
    root = Path(__file__).resolve().parents[2]
    environ = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), *FAMILIES]
    subprocess.run(command, env=environ, check=True)
    for name in FAMILIES:
        found = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        torch.testing.assert_close(found, fitted(name).encode(rows), rtol=0, atol=1e-6)


@every_family
def test_save_and_load_keep_every_bit(
    name: str, rows: torch.Tensor, fitted: Callable[[str], ConceptDictionary], tmp_path: Path
) -> None:
    dictionary = fitted(name)
    dictionary.provenance = {"layer": "encoder.1", "model": {"name": "ünï"}}
    dictionary.descriptions = [
        ConceptDescription(0, (Word("<b>", 1.5, 2),), (Context(3, "a ", "<b>", " c", 1.5),), 0.25, 1.5)
    ]
    assert dictionary.save(tmp_path / "deep" / "folder") == tmp_path / "deep" / "folder"
    loaded = ConceptDictionary.load(tmp_path / "deep" / "folder")
    assert type(loaded) is type(dictionary)
    assert loaded.encode(rows).numpy().tobytes() == dictionary.encode(rows).numpy().tobytes()
    assert torch.equal(loaded.decode(loaded.encode(rows)), dictionary.decode(dictionary.encode(rows)))
    for attribute in ("parameters", "provenance", "history_", "descriptions", "versions"):
        assert getattr(loaded, attribute) == getattr(dictionary, attribute)
    assert loaded.versions["torch"] == importlib.metadata.version("torch")
    files = sorted(path.name for path in (tmp_path / "deep" / "folder").iterdir())
    assert files == ["dictionary.json", "dictionary.safetensors"]


@every_family
def test_copies_do_not_share_anything(
    name: str, rows: torch.Tensor, fitted: Callable[[str], ConceptDictionary]
) -> None:
    dictionary = fitted(name)
    before = dictionary.encode(rows)
    clone = copy.deepcopy(dictionary)
    for tensor in clone.weights.values():
        tensor.zero_()
    assert torch.equal(dictionary.encode(rows), before)


@every_family
def test_reconstruction_beats_the_mean_on_offset_data(
    name: str, rows: torch.Tensor, fitted: Callable[[str], ConceptDictionary]
) -> None:
    dictionary = fitted(name)
    error = (rows - dictionary.decode(dictionary.encode(rows))).square().sum()
    assert error < 0.5 * (rows - rows.mean(dim=0)).square().sum()


@every_family
def test_no_direction_is_zero(name: str, fitted: Callable[[str], ConceptDictionary]) -> None:
    norms = fitted(name).dictionary.norm(dim=1)
    if name in OF_ANY_LENGTH:
        assert bool((norms > 0.1).all())
    else:
        torch.testing.assert_close(norms, torch.ones(n_concepts_of(name)))


@every_family
def test_an_outlier_dimension_is_no_trouble(name: str, rows: torch.Tensor) -> None:
    wild = rows.clone()
    wild[:, 3] *= 100
    dictionary = build(name).fit(wild, progress=False)
    assert dictionary.dictionary.isfinite().all()
    error = (wild - dictionary.decode(dictionary.encode(wild))).square().sum()
    assert error < 0.5 * (wild - wild.mean(dim=0)).square().sum()


@every_family
def test_the_gradient_is_autograds(name: str, rows: torch.Tensor, fitted: Callable[[str], ConceptDictionary]) -> None:
    dictionary = fitted(name)
    codes = dictionary.encode(rows[:20])
    of_rows = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(1))
    leaf = codes.clone().requires_grad_(True)
    (dictionary.decode(leaf) * of_rows).sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(dictionary.gradient(codes, of_rows), leaf.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ConceptDictionary.gradient(dictionary, codes, of_rows), leaf.grad)


@every_family
def test_together_is_alone_to_the_bit(
    name: str, rows: torch.Tensor, fitted: Callable[[str], ConceptDictionary]
) -> None:
    others = [build(name, seed=7), *(build(other) for other in FAMILIES)]
    if DICTIONARIES.get(name).sized:
        others.append(build(name, n_concepts=5))
    company = [*others, build(name)]
    last = fit_together(company, rows, progress=False)[-1]
    assert torch.equal(last.dictionary, fitted(name).dictionary)
    assert torch.equal(last.encode(rows), fitted(name).encode(rows))
    assert last.history_ == fitted(name).history_


@every_family
def test_fitting_again_starts_anew(name: str, rows: torch.Tensor, fitted: Callable[[str], ConceptDictionary]) -> None:
    dictionary = build(name).fit(rows.flip(0)[:100], progress=False)
    dictionary.descriptions = []
    dictionary.fit(rows, progress=False)
    assert torch.equal(dictionary.dictionary, fitted(name).dictionary)
    assert dictionary.history_ == fitted(name).history_
    assert dictionary.descriptions is None


@every_family
def test_an_unknown_parameter_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match="n_conepts"):
        build(name, n_conepts=3)


@every_family
@pytest.mark.parametrize("n_concepts", [0, -1, 2.5, True, "8"])
def test_a_bad_number_of_concepts_is_refused(name: str, n_concepts: object) -> None:
    with pytest.raises(InputError, match=r"n_concepts must be a whole number of at least 1, not"):
        build(name, n_concepts=n_concepts)


@every_family
def test_bad_rows_are_refused_and_leave_the_dictionary_as_it_was(
    name: str, rows: torch.Tensor, fitted: Callable[[str], ConceptDictionary]
) -> None:
    dictionary = fitted(name)
    broken = rows.clone()
    broken[17, 2] = float("nan")
    with pytest.raises(InputError, match="row 17 of the activations is NaN"):
        dictionary.fit(broken, progress=False)
    with pytest.raises(InputError, match="row 17 of the activations is NaN"):
        dictionary.encode(broken)
    if dictionary.sized:
        with pytest.raises(InputError, match="8 concepts need at least as many rows of activations, and there are 7"):
            dictionary.fit(rows[:7], progress=False)
    with pytest.raises(InputError, match="no rows"):
        dictionary.fit(rows[:0], progress=False)
    with pytest.raises(InputError, match="takes activations of width 12, not 11"):
        dictionary.encode(rows[:, :11])
    with pytest.raises(InputError, match=f"{n_concepts_of(name)} columns, not 7"):
        dictionary.decode(torch.zeros(2, 7))
    with pytest.raises(InputError, match=r"shape \(rows, width\), not \(12,\)"):
        dictionary.encode(rows[0])
    with pytest.raises(InputError, match="not list"):
        dictionary.encode([[1.0]])  # type: ignore[arg-type]
    assert torch.equal(dictionary.dictionary, fitted(name).dictionary)


@every_family
def test_it_must_be_fitted_first(name: str, rows: torch.Tensor, tmp_path: Path) -> None:
    dictionary = build(name)
    for use in (lambda: dictionary.encode(rows), lambda: dictionary.dictionary, lambda: dictionary.save(tmp_path)):
        with pytest.raises(NotFittedError, match=r"is not fitted; call fit\(activations\)"):
            use()
    assert not dictionary.is_fitted
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def saved(fitted: Callable[[str], ConceptDictionary], tmp_path: Path) -> Path:
    return fitted("pca").save(tmp_path)


def edit(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / "dictionary.json").read_text())
    (folder / "dictionary.json").write_text(json.dumps({**card, **changes}))


def test_changed_weights_are_noticed(saved: Path) -> None:
    content = bytearray((saved / "dictionary.safetensors").read_bytes())
    content[-1] ^= 1
    (saved / "dictionary.safetensors").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"dictionary\.safetensors' were changed or damaged"):
        ConceptDictionary.load(saved)


def test_missing_and_unreadable_files_are_named(saved: Path, tmp_path: Path) -> None:
    (saved / "dictionary.safetensors").unlink()
    with pytest.raises(IntegrityError, match="cannot read the dictionary's weights"):
        ConceptDictionary.load(saved)
    (saved / "dictionary.json").write_text("{")
    with pytest.raises(IntegrityError, match="cannot read the dictionary's card"):
        ConceptDictionary.load(saved)
    with pytest.raises(IntegrityError, match="cannot read the dictionary's card"):
        ConceptDictionary.load(tmp_path / "nowhere")


def test_a_card_of_another_kind_is_refused(saved: Path) -> None:
    edit(saved, parameters={"n_concepts": 8, "depth": 3})
    with pytest.raises(IntegrityError, match="depth"):
        ConceptDictionary.load(saved)
    edit(saved, parameters={"n_concepts": 5})
    with pytest.raises(IntegrityError, match=r"shape \[8, 12\]"):
        ConceptDictionary.load(saved)
    edit(saved, method="magic")
    with pytest.raises(UnknownNameError, match="unknown concept method 'magic'; known: '"):
        ConceptDictionary.load(saved)
    edit(saved, format="concept-dictionary/9")
    with pytest.raises(IntegrityError, match="not a card of the format 'concept-dictionary/1'"):
        ConceptDictionary.load(saved)


def test_a_family_loads_only_its_own(saved: Path) -> None:
    assert isinstance(PCAConcepts.load(saved), PCAConcepts)
    with pytest.raises(InputError, match="holds a 'pca' dictionary, not TopKSAEConcepts"):
        TopKSAEConcepts.load(saved)
