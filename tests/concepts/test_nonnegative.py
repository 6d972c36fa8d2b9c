"""Non-negative codes and factorisations: scipy and scikit-learn as oracles, and steps that never get worse."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sklearn.cluster import KMeans
from sklearn.decomposition import NMF, non_negative_factorization

from interpreto_mlops.concepts import (
    CockatielConcepts,
    ConceptDictionary,
    ConvexNMFConcepts,
    NMFConcepts,
    SemiNMFConcepts,
)
from interpreto_mlops.concepts.factorisation import (
    Atoms,
    ConvexAtoms,
    FreeAtoms,
    NonnegativeAtoms,
    factorise,
    nonnegative_start,
    spread_start,
    unit,
)
from interpreto_mlops.concepts.nonnegative import RIDGE, nonnegative_codes, sweep
from interpreto_mlops.errors import InputError

GENERATOR = torch.Generator().manual_seed(0)


def planted(n_rows: int, n_atoms: int, width: int) -> torch.Tensor:
    """Non-negative rows of sparse non-negative codes."""
    atoms = torch.rand(n_atoms, width, generator=GENERATOR) * (torch.rand(n_atoms, width, generator=GENERATOR) < 0.4)
    codes = torch.rand(n_rows, n_atoms, generator=GENERATOR) * (torch.rand(n_rows, n_atoms, generator=GENERATOR) < 0.3)
    return (codes @ atoms + 0.01 * torch.randn(n_rows, width, generator=GENERATOR)).clamp(min=0)


ROWS = planted(800, 8, 16)


def error_of(dictionary: ConceptDictionary, rows: torch.Tensor) -> float:
    return float((rows - dictionary.decode(dictionary.encode(rows))).double().square().sum())


def of_scipy(rows: torch.Tensor, atoms: torch.Tensor, ridge: float) -> torch.Tensor:
    """The same codes by Lawson and Hanson's method on the atoms with the ridge written out."""
    written_out = np.vstack([atoms.double().numpy().T, ridge**0.5 * np.eye(len(atoms))])
    padding = np.zeros(len(atoms))
    codes = [nnls(written_out, np.concatenate([row, padding]), maxiter=10_000)[0] for row in rows.double().numpy()]
    return torch.from_numpy(np.stack(codes))


@pytest.mark.parametrize("ridge", [RIDGE, 0.01])
@pytest.mark.parametrize(("n_atoms", "width"), [(6, 10), (25, 10), (12, 12), (1, 4)])
def test_codes_are_scipys(n_atoms: int, width: int, ridge: float) -> None:
    atoms = unit(torch.randn(n_atoms, width, generator=GENERATOR))
    atoms[-1] = atoms[0]  # dependent atoms
    rows = torch.randn(40, width, generator=GENERATOR)
    rows[3] = 0.0
    rows[4] = atoms[0]
    codes = nonnegative_codes(rows, atoms, ridge)
    assert (codes >= 0).all()
    assert not codes[3].any()
    torch.testing.assert_close(codes, of_scipy(rows, atoms, ridge), rtol=0, atol=1e-7)
    alone = torch.cat([nonnegative_codes(row[None], atoms, ridge) for row in rows])
    torch.testing.assert_close(alone, codes, rtol=0, atol=1e-8)


def test_without_dependent_atoms_the_ridge_is_not_felt() -> None:
    atoms, rows = unit(torch.rand(8, 12, generator=GENERATOR)), torch.rand(30, 12, generator=GENERATOR)
    plain = np.stack([nnls(atoms.double().numpy().T, row)[0] for row in rows.double().numpy()])
    np.testing.assert_allclose(nonnegative_codes(rows, atoms).numpy(), plain, atol=1e-4)


@pytest.mark.parametrize("exchanges", [1, 3, 40])
def test_codes_are_optimal_however_the_exchanges_end(exchanges: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many more atoms than dimensions, among them the rows themselves: where exchanging signs may go in circles."""
    monkeypatch.setattr("interpreto_mlops.concepts.nonnegative._MOST_EXCHANGES", exchanges)
    everything = planted(160, 20, 30)
    everything = everything[everything.norm(dim=1) > 0]
    atoms, rows = unit(everything[:120]), everything[80:160]
    codes = nonnegative_codes(rows, atoms)
    heavier = atoms.double() @ atoms.double().T + RIDGE * torch.eye(len(atoms))
    slopes = codes @ heavier - rows.double() @ atoms.double().T
    assert (codes >= 0).all()
    assert slopes.min() > -1e-8
    assert (slopes * codes).abs().max() < 1e-8


def test_a_sweep_never_makes_it_worse() -> None:
    atoms, rows = torch.rand(7, 9, generator=GENERATOR), torch.randn(30, 9, generator=GENERATOR)
    codes = torch.rand(7, 30, generator=GENERATOR)
    errors = [float((rows - codes.T @ atoms).square().sum())]
    for _ in range(6):
        sweep(codes, atoms @ rows.T, atoms @ atoms.T)
        errors.append(float((rows - codes.T @ atoms).square().sum()))
    assert (codes >= 0).all()
    assert all(after <= before + 1e-4 for before, after in pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]


def made(kind: str, rows: torch.Tensor, generator: torch.Generator) -> tuple[Atoms, torch.Tensor]:
    if kind == "convex":
        convex = ConvexAtoms(rows[:200], torch.rand(6, 200, generator=generator))
        return convex, convex.weights @ convex.anchors
    start = unit((nonnegative_start if kind == "nonnegative" else spread_start)(rows, 6, generator))
    return (NonnegativeAtoms() if kind == "nonnegative" else FreeAtoms()), start


@pytest.mark.parametrize("kind", ["nonnegative", "free", "convex"])
def test_better_atoms_are_never_worse(kind: str) -> None:
    rows = ROWS if kind == "nonnegative" else ROWS - ROWS.mean(dim=0)
    improver, atoms = made(kind, rows, torch.Generator().manual_seed(1))
    errors = []
    for _ in range(15):
        codes = nonnegative_codes(rows, atoms).float().T
        before = float((rows - codes.T @ atoms).double().square().sum())
        atoms = improver.improved(codes @ rows, codes @ codes.T, atoms)
        after = float((rows - codes.T @ atoms).double().square().sum())
        errors += [before, after]
        atoms = unit(atoms)
    assert all(later <= sooner * (1 + 1e-5) for sooner, later in pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]
    if kind == "nonnegative":
        assert (atoms >= 0).all()


@pytest.mark.parametrize("kind", ["nonnegative", "free", "convex"])
def test_more_rounds_are_never_worse(kind: str) -> None:
    rows = ROWS if kind == "nonnegative" else ROWS - ROWS.mean(dim=0)

    def error(rounds: int) -> float:
        improver, start = made(kind, rows, torch.Generator().manual_seed(1))
        found = factorise(rows, start, improver, max_iter=rounds, tol=0.0)
        return float((rows - nonnegative_codes(rows, found).float() @ found).square().sum())

    errors = [error(rounds) for rounds in (1, 3, 10, 40)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.9 * errors[0]


def test_rounds_are_scikit_learns_coordinate_descent() -> None:
    """From the same start, round by round: the two are one algorithm, but for the sweeps before the first round."""
    rows = ROWS.double()
    generator = torch.Generator().manual_seed(2)
    atoms = unit(torch.rand(8, 16, generator=generator, dtype=torch.float64))
    codes = torch.zeros(8, len(rows), dtype=torch.float64)
    for _ in range(10):
        sweep(codes, atoms @ rows.T, atoms @ atoms.T)
    theirs, _, _ = non_negative_factorization(
        rows.numpy(), codes.T.numpy().copy(), atoms.numpy().copy(), n_components=8, init="custom", max_iter=1, tol=0.0
    )
    sweep(codes, atoms @ rows.T, atoms @ atoms.T)
    np.testing.assert_allclose(codes.T.numpy(), theirs, atol=1e-10)


def test_nmf_is_as_good_as_scikit_learns() -> None:
    """Over some data sets, for both find one of several optima."""
    ratios = []
    for rows in (ROWS, *(planted(800, 8, 16) for _ in range(3))):
        ours = NMFConcepts(n_concepts=8, max_iter=400, tol=1e-6).fit(rows, progress=False)
        theirs = NMF(8, init="nndsvda", max_iter=400, tol=1e-4).fit(rows.double().numpy())
        codes = theirs.transform(rows.double().numpy())
        error = float(((rows.double().numpy() - codes @ theirs.components_) ** 2).sum())
        ratios.append(error_of(ours, rows) / error)
        assert (ours.dictionary >= 0).all()
        assert (ours.encode(rows) >= 0).all()
    assert max(ratios) < 1.15
    assert np.exp(np.mean(np.log(ratios))) < 1.02


def test_no_concept_is_left_unused() -> None:
    """More concepts than there are: NNDSVD alone gives atoms that nothing needs."""
    dictionary = NMFConcepts(n_concepts=20).fit(ROWS, progress=False)
    assert (dictionary.dictionary.norm(dim=1) - 1).abs().max() < 1e-5
    assert (dictionary.encode(ROWS).amax(dim=0) > 0).float().mean() > 0.8


def test_negative_activations_are_refused_with_the_remedy() -> None:
    rows = ROWS - 0.01
    with pytest.raises(InputError, match=r"nmf takes no negative activations, and the least is -0\.01; .* ReLU"):
        NMFConcepts(n_concepts=4).fit(rows, progress=False)
    fitted = NMFConcepts(n_concepts=4).fit(ROWS, progress=False)
    with pytest.raises(InputError, match="rectify=True"):
        fitted.encode(rows)
    rectified = NMFConcepts(n_concepts=4, rectify=True).fit(rows, progress=False)
    torch.testing.assert_close(rectified.encode(rows), rectified.encode(rows.clamp(min=0)))


def test_semi_nmf_beats_clusters_and_has_codes_that_are_not_negative() -> None:
    rows = ROWS + 3.0
    dictionary = SemiNMFConcepts(n_concepts=5).fit(rows, progress=False)
    clusters = KMeans(5, n_init=3, random_state=0).fit(rows.numpy())
    assert error_of(dictionary, rows) < clusters.inertia_
    assert (dictionary.encode(rows) >= 0).all()
    assert (dictionary.dictionary < 0).any()


def test_convex_directions_are_made_of_anchors() -> None:
    centred = ROWS - ROWS.mean(dim=0)
    anchors = centred[:60]
    kind = ConvexAtoms(anchors, torch.rand(5, 60, generator=GENERATOR))
    atoms = factorise(centred, kind.weights @ anchors, kind, max_iter=50, tol=0.0)
    assert (kind.weights >= 0).all()
    torch.testing.assert_close(kind.weights @ anchors, atoms, rtol=0, atol=1e-4)
    # Eight atoms and noise: 40 rows on one side of a plane do not span everything, so that the test can fail.
    one_side = centred[centred[:, 0] > 0][:40]
    kind = ConvexAtoms(one_side, torch.rand(5, 40, generator=GENERATOR))
    atoms = factorise(centred, kind.weights @ one_side, kind, max_iter=50, tol=0.0)
    assert (atoms[:, 0] > 0).all()
    for atom in atoms.double().numpy():
        assert nnls(one_side.double().numpy().T, atom, maxiter=100_000)[1] < 1e-4


def test_convex_directions_lie_in_the_cone_of_the_centred_rows() -> None:
    dictionary = ConvexNMFConcepts(n_concepts=5, n_anchors=300).fit(ROWS, progress=False)
    centred = (ROWS - ROWS.mean(dim=0)).double().numpy()
    for direction in dictionary.dictionary.double().numpy():
        _, residual = nnls(centred.T, direction, maxiter=100_000)
        assert residual < 1e-3


def test_convex_concepts_encode_new_rows() -> None:
    dictionary = ConvexNMFConcepts(n_concepts=5, n_anchors=300).fit(ROWS, progress=False)
    for count in (1, 3, 50):
        assert dictionary.encode(torch.rand(count, 16, generator=GENERATOR)).shape == (count, 5)
    assert error_of(dictionary, ROWS) < 0.6 * float((ROWS - ROWS.mean(dim=0)).double().square().sum())


def test_semi_nmf_does_not_end_in_directions_that_cancel() -> None:
    """Its own optimum is that of PCA with codes shifted until none is negative, as its ridge of nearly 0 shows."""
    rows = ROWS.repeat(2, 1)
    sparse, dense = (
        SemiNMFConcepts(n_concepts=10, ridge=ridge, tol=1e-6).fit(rows, progress=False) for ridge in (0.01, RIDGE)
    )
    sizes = [float(each.encode(rows).norm()) for each in (sparse, dense)]
    assert sizes[0] < 0.8 * sizes[1]
    assert error_of(sparse, rows) < 0.1 * float((rows - rows.mean(dim=0)).double().square().sum())


def test_cockatiel_is_nmf_with_its_authors_number() -> None:
    cockatiel = CockatielConcepts().fit(ROWS, progress=False)
    assert cockatiel.n_concepts == 25
    assert torch.equal(cockatiel.dictionary, NMFConcepts(n_concepts=25).fit(ROWS, progress=False).dictionary)


@pytest.mark.parametrize("family", [NMFConcepts, SemiNMFConcepts, ConvexNMFConcepts])
def test_a_sample_of_many_rows_is_enough(family: type[ConceptDictionary]) -> None:
    options = {"n_anchors": 200} if family is ConvexNMFConcepts else {}
    rows = ROWS.repeat(3, 1)
    sampled = family(n_concepts=6, max_rows=600, **options).fit(rows, progress=False)
    assert error_of(sampled, rows) < 0.5 * float((rows - rows.mean(dim=0)).double().square().sum())


@pytest.mark.parametrize("family", [NMFConcepts, SemiNMFConcepts, ConvexNMFConcepts])
def test_rows_that_are_all_equal_are_refused(family: type[ConceptDictionary]) -> None:
    with pytest.raises(InputError, match="all 10 rows of the activations are equal"):
        family(n_concepts=2).fit(torch.ones(10, 4), progress=False)
