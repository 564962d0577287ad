"""Bases, segmentations, subspaces and clusters with known answers, and the phases of a store that has some."""

import json
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy.linalg import subspace_angles
from scipy.stats import ortho_group
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from synthetic import Histories, write_store
from test_analysis import run

from replay.analyses.phases import analyze_phases
from replay.analyses.selection import Choice
from replay.geometry.clusters import cluster_points, divide_points, label_agreement
from replay.geometry.pooled_pca import pooled_basis, split_variance
from replay.geometry.segmentation import (
    boundary_support,
    broken_line_ratio,
    critical_ratio,
    probe_replicates,
    segment_path,
)
from replay.geometry.statistics import jackknife_error, probe_groups
from replay.geometry.subspaces import compare_subspaces, random_overlap, top_subspace
from replay.jobs import Cluster
from replay.opening import open_store
from store.errors import InvalidInput, Unavailable

Floats = npt.NDArray[np.float64]

STEPS = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
TURN = 6
"""Position of the checkpoint at which the made-up runs change their geometry."""


def sets(n: int = 4, *, n_probes: int = 20, width: int = 9) -> list[Floats]:
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((n_probes, width)) * np.linspace(3, 0.5, width) + 5
    return [shared + 0.7 * number + 0.3 * rng.standard_normal((n_probes, width)) for number in range(n)]


@pytest.mark.parametrize("width", [9, 90])
def test_a_basis_gathered_set_by_set_is_that_of_one_decomposition_of_all_rows(width: int) -> None:
    X = sets(width=width)
    rows = np.concatenate(X)
    _, values, vectors = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    found = pooled_basis(lambda: iter(X), 4)
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.variance, values[:4] ** 2 / len(rows), rtol=1e-10)
    np.testing.assert_allclose(np.abs(np.vecdot(found.components, vectors[:4])), 1, atol=1e-10)
    np.testing.assert_allclose(found.explained, values[:4] ** 2 / (values**2).sum(), rtol=1e-10)
    scores = found.scores(X[2])
    np.testing.assert_allclose(np.abs(scores), np.abs((X[2] - rows.mean(axis=0)) @ vectors[:4].T), atol=1e-9)
    assert found.residual < 1e-12


def test_the_order_of_the_sets_does_not_matter_and_signs_follow_the_largest_loading() -> None:
    X = sets()
    one, other = pooled_basis(lambda: iter(X), 5), pooled_basis(lambda: iter(X[::-1]), 5)
    np.testing.assert_allclose(other.components, one.components, atol=1e-10)
    np.testing.assert_allclose(other.variance, one.variance, rtol=1e-10)
    mirrored = pooled_basis(lambda: (-A for A in X), 5)
    np.testing.assert_allclose(mirrored.components, one.components, atol=1e-10)
    assert (np.take_along_axis(one.components, np.abs(one.components).argmax(axis=1)[:, None], axis=1) > 0).all()


def test_a_basis_without_the_covariance_is_the_same_to_its_residual() -> None:
    X = sets(width=60, n_probes=30)
    dense, iterated = pooled_basis(lambda: iter(X), 3), pooled_basis(lambda: iter(X), 3, dense=False)
    assert iterated.residual < 1e-6
    np.testing.assert_allclose(iterated.variance, dense.variance, rtol=1e-6)
    assert iterated.total == pytest.approx(dense.total, rel=1e-12)
    np.testing.assert_allclose(iterated.components, dense.components, atol=1e-4)


def test_an_offset_changes_nothing_unless_the_basis_is_not_centred() -> None:
    X = sets()
    centred = pooled_basis(lambda: (A + 50 for A in X), 3)
    np.testing.assert_allclose(centred.variance, pooled_basis(lambda: iter(X), 3).variance, rtol=1e-10)
    raw = pooled_basis(lambda: iter(X), 3, centred=False)
    rows = np.concatenate(X)
    np.testing.assert_allclose(raw.variance, np.linalg.svd(rows)[1][:3] ** 2 / len(rows), rtol=1e-10)
    assert not raw.mean.any()


def test_the_variance_of_a_run_splits_as_its_formula_says() -> None:
    X = sets()
    A = np.array(X)
    m, of_step, of_probe = A.mean(axis=(0, 1)), A.mean(axis=1, keepdims=True), A.mean(axis=0)
    total = ((A - m) ** 2).sum()
    parts = 20 * ((of_step - m) ** 2).sum(), 4 * ((of_probe - m) ** 2).sum(), ((A - of_step - of_probe + m) ** 2).sum()
    shares, squares = split_variance(lambda: iter(X))
    np.testing.assert_allclose(shares, np.array(parts) / total, rtol=1e-10)
    assert squares == pytest.approx(total)
    assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize(
    ("what", "expected"), [("moves", (1, 0, 0)), ("stays apart", (0, 1, 0)), ("trades places", (0, 0, 1))]
)
def test_movement_geometry_and_rearrangement_are_told_apart(what: str, expected: tuple[float, ...]) -> None:
    X = np.random.default_rng(0).standard_normal((6, 3))
    X -= X.mean(axis=0)
    made = {"moves": [0 * X, 0 * X + 1], "stays apart": [X, X, X], "trades places": [X, -X]}[what]
    np.testing.assert_allclose(split_variance(lambda: iter(made))[0], expected, atol=1e-12)


def test_a_basis_of_nothing_or_of_sets_that_do_not_fit_is_refused() -> None:
    X = sets()
    with pytest.raises(InvalidInput, match="10 components of 80 rows with 9 features: expected 1 to 9"):
        pooled_basis(lambda: iter(X), 10)
    with pytest.raises(InvalidInput, match="not of 9 and 8 features"):
        pooled_basis(lambda: iter([X[0], X[1][:, :8]]), 2)
    with pytest.raises(InvalidInput, match="finite"):
        pooled_basis(lambda: iter([X[0] * np.nan]), 2)
    with pytest.raises(InvalidInput, match="one shape"):
        split_variance(lambda: iter([X[0], X[1][:5]]))
    constant = [np.ones((4, 3))] * 2
    with pytest.raises(Unavailable, match="nothing varies"):
        pooled_basis(lambda: iter(constant), 1)
    with pytest.raises(Unavailable, match="nothing varies"):
        split_variance(lambda: iter(constant))


def left_by_lines(X: Floats, breaks: tuple[int, ...]) -> float:
    ends = [0, *breaks, len(X)]
    parts = [(np.arange(b - a), X[a:b]) for a, b in pairwise(ends)]
    return sum(float(np.polyfit(t, Y, 1, full=True)[1].sum()) for t, Y in parts)


@pytest.mark.parametrize("n_parts", [2, 3])
def test_the_best_broken_line_is_that_of_all_and_the_curve_that_of_a_polynomial(n_parts: int) -> None:
    X = np.random.default_rng(1).standard_normal((11, 2)).cumsum(axis=0)
    ways = [
        breaks
        for breaks in combinations(range(3, 9), n_parts - 1)
        if min(b - a for a, b in pairwise([0, *breaks, 11])) >= 3
    ]
    best = min(left_by_lines(X, breaks) for breaks in ways)
    smooth = np.polynomial.Legendre.fit(np.arange(11), X[:, 0], 3 * n_parts - 2)(np.arange(11)) - X[:, 0]
    other = np.polynomial.Legendre.fit(np.arange(11), X[:, 1], 3 * n_parts - 2)(np.arange(11)) - X[:, 1]
    expected = best / float((smooth**2).sum() + (other**2).sum())
    assert broken_line_ratio(X @ X.T, n_parts) == pytest.approx(expected, rel=1e-8)


def planted(kind: str, rng: np.random.Generator, *, T: int = 24, D: int = 3) -> Floats:
    """A path that changes, at 12 or at 8 and 16 of 24 checkpoints."""
    k, e = np.arange(T)[:, None], rng.standard_normal((T, D))
    v, w = np.linalg.qr(rng.standard_normal((D, 2)))[0].T
    paths: dict[str, Floats] = {
        "jump": 5 * (k >= T // 2) * v + 0.4 * e,
        "jump of a drift": 5 * (k >= T // 2) * v + 3 * k / T * w + 0.3 * e,
        "jump of a random walk": 5 * (k >= T // 2) * v + 0.3 * e.cumsum(axis=0),
        "there and back": 5 * ((k >= T // 3) & (k < 2 * T // 3)) * v + 0.4 * e,
        "two jumps": 5 * (k >= T // 3) * v + 5 * (k >= 2 * T // 3) * w + 0.4 * e,
    }
    return paths[kind]


@pytest.mark.parametrize("kind", ["jump", "jump of a drift", "jump of a random walk", "there and back", "two jumps"])
def test_planted_phases_are_found_in_the_right_number_and_place(kind: str) -> None:
    rng = np.random.default_rng(2)
    expected = [12] if kind.startswith("jump") else [8, 16]
    right = 0
    for _ in range(20):
        X = planted(kind, rng)
        found = segment_path(X @ X.T)
        right += len(found) == len(expected) and all(abs(a - b) <= 1 for a, b in zip(found, expected, strict=True))
    assert right >= 16


def eventless(kind: str, rng: np.random.Generator, *, T: int = 18, D: int = 3) -> Floats:
    e, t = rng.standard_normal((T, D)), np.linspace(0, 1, T)[:, None]
    if kind == "autoregression":
        for now in range(1, T):
            e[now] += 0.7 * e[now - 1]
        return e
    return {
        "noise": e,
        "random walk": e.cumsum(axis=0),
        "random walk with drift": (e + 1).cumsum(axis=0),
        "straight drift": 5 * t + 0.1 * e,
        "drift that slows down": 5 * (1 - np.exp(-4 * t)) + 0.05 * e,
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["noise", "random walk", "random walk with drift", "autoregression", "straight drift", "drift that slows down"],
)
def test_noise_wandering_and_drift_are_one_phase_at_the_stated_rate(kind: str) -> None:
    rng = np.random.default_rng(3)
    paths = [eventless(kind, rng) for _ in range(120)]
    false = sum(bool(segment_path(X @ X.T)) for X in paths)
    assert false <= 13  # 5 % of 120 are 6; 14 or more have a chance of 0.3 %


@pytest.mark.parametrize(("T", "D", "m"), [(8, 2, 2), (18, 4, 3), (24, 1, 4)])
def test_the_critical_ratio_is_the_quantile_of_a_wandering_path(T: int, D: int, m: int) -> None:
    rng = np.random.default_rng(4)
    ratios = []
    for _ in range(400):
        X = eventless("random walk", rng, T=T, D=D)
        ratios.append(broken_line_ratio(X @ X.T, m))
    below = float(np.mean(np.array(ratios) < critical_ratio(T, D, m)))
    assert 0 < below < 0.04  # 1.7 %, and less where another kind of path has the lower quantile


def test_scale_offset_rotation_and_direction_of_time_change_no_phase() -> None:
    X = planted("two jumps", np.random.default_rng(5))
    found = segment_path(X @ X.T)
    assert found == [8, 16]
    Y = 3 * X @ ortho_group.rvs(3, random_state=0) + 7
    assert segment_path(Y @ Y.T) == found
    assert segment_path(5 * (X @ X.T) + 2) == found
    assert segment_path(X[::-1] @ X[::-1].T) == [24 - b for b in reversed(found)]


def test_a_path_that_does_not_move_or_is_a_curve_without_noise_is_one_phase() -> None:
    t = np.linspace(0, 1, 12)[:, None]
    for X in (np.ones((12, 2)), t * [1.0, 2.0], np.hstack([t**2, t**3])):
        assert segment_path(X @ X.T) == []


def test_impossible_paths_are_refused() -> None:
    with pytest.raises(Unavailable, match="two phases need 6 checkpoints or more, and there are 5"):
        segment_path(np.eye(5))
    with pytest.raises(InvalidInput, match=r"not of shape \(6, 5\)"):
        segment_path(np.ones((6, 5)))
    with pytest.raises(InvalidInput, match="symmetric"):
        segment_path(np.triu(np.ones((6, 6))))
    with pytest.raises(InvalidInput, match="finite"):
        segment_path(np.full((6, 6), np.nan))
    with pytest.raises(Unavailable, match="3 parts need 9 checkpoints or more, and there are 8"):
        broken_line_ratio(np.eye(8), 3)


def test_replicates_over_probes_scatter_as_the_jackknife_says() -> None:
    rng = np.random.default_rng(6)
    K, without = np.eye(3), rng.standard_normal((3, 3, 15))
    drawn = probe_replicates(K, without, n_replicates=4000)
    np.testing.assert_allclose(drawn.mean(axis=0), K, atol=0.25)
    np.testing.assert_allclose(drawn.std(axis=0), jackknife_error(without), rtol=0.05)


def test_confidence_counts_replicates_within_one_checkpoint() -> None:
    told = boundary_support([5, 12], [[5, 12], [6, 12], [3], []])
    assert [(one.start, one.confidence) for one in told] == [(5, 0.5), (12, 0.5)]
    assert (told[0].low, told[0].high) == (3, 6)


def test_principal_angles_are_those_of_an_independent_library_and_of_a_known_turn() -> None:
    rng = np.random.default_rng(7)
    U, V = (np.linalg.qr(rng.standard_normal((12, 4)))[0] for _ in range(2))
    found = compare_subspaces(U, V)
    np.testing.assert_allclose(found.angles, np.degrees(subspace_angles(U, V))[::-1], atol=1e-8)
    assert found.overlap == pytest.approx(np.mean(np.cos(np.radians(found.angles)) ** 2))
    assert found.mean_cosine == pytest.approx(np.mean(np.cos(np.radians(found.angles))))
    for degrees in (1e-5, 30.0, 89.9999):
        a = np.radians(degrees)
        turned = compare_subspaces(np.eye(3)[:, :1], np.array([[np.cos(a)], [np.sin(a)], [0]]))
        assert turned.angles[0] == pytest.approx(degrees, rel=1e-6)


@pytest.mark.parametrize("shape", [(40, 12), (10, 30)])
def test_a_shared_rotation_an_offset_and_a_scale_leave_the_overlap(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(8)
    X = rng.standard_normal(shape) * np.linspace(3, 0.5, shape[1])
    Y = X + 0.5 * rng.standard_normal(shape)
    Q = ortho_group.rvs(shape[1], random_state=0)
    one = compare_subspaces(top_subspace(X, 3), top_subspace(Y, 3))
    other = compare_subspaces(top_subspace(X @ Q, 3), top_subspace(4 * Y @ Q + 9, 3))
    np.testing.assert_allclose(other.angles, one.angles, atol=1e-6)
    assert 0.1 < one.overlap < 0.999
    vectors = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)[2][:3].T
    np.testing.assert_allclose(compare_subspaces(top_subspace(X, 3), vectors).angles, 0, atol=1e-5)


def test_random_subspaces_overlap_by_chance_as_stated() -> None:
    rng = np.random.default_rng(9)
    drawn = [
        compare_subspaces(*(np.linalg.qr(rng.standard_normal((20, 5)))[0] for _ in range(2))).overlap
        for _ in range(300)
    ]
    assert np.mean(drawn) == pytest.approx(random_overlap(5, 20), abs=0.01)


def test_a_subspace_beyond_the_rank_is_unavailable() -> None:
    rng = np.random.default_rng(10)
    X = (rng.standard_normal((30, 3)) @ rng.standard_normal((3, 8))).astype(np.float32)
    assert top_subspace(X, 3).shape == (8, 3)
    with pytest.raises(Unavailable, match=r"of 4 dimensions .* these 30 x 8 have 3"):
        top_subspace(X, 4)
    with pytest.raises(Unavailable, match="these 5 x 8 have 4"):
        top_subspace(rng.standard_normal((5, 8)), 5)
    with pytest.raises(InvalidInput, match="k=0"):
        top_subspace(X, 0)
    with pytest.raises(InvalidInput, match="one shape"):
        compare_subspaces(np.eye(3)[:, :1], np.eye(3)[:, :2])


def test_blobs_are_found_in_their_number_and_counted_in_the_order_of_their_steps() -> None:
    rng = np.random.default_rng(11)
    kinds = np.repeat([2, 0, 1], 60)
    X = 8 * np.eye(3)[kinds] + rng.standard_normal((180, 3))
    found = cluster_points(X, 10 - kinds)
    assert (found.labels == 2 - kinds).all()
    np.testing.assert_allclose(found.centres, [X[kinds == kind].mean(axis=0) for kind in (2, 1, 0)], atol=1e-9)
    assert found.silhouette > 0.6 > 0.4 > found.silhouette_null
    assert len(cluster_points(X, kinds, n_clusters=5).centres) == 5


def test_points_of_one_gaussian_have_the_silhouette_of_the_null() -> None:
    X = np.random.default_rng(12).standard_normal((600, 4)) * [3, 2, 1, 1]
    found = cluster_points(X, np.zeros(600))
    assert found.silhouette == pytest.approx(found.silhouette_null, abs=0.05)


def test_clusters_of_too_few_points_are_refused() -> None:
    with pytest.raises(InvalidInput, match="5 clusters of 4 points"):
        cluster_points(np.eye(4), np.zeros(4), n_clusters=5)
    with pytest.raises(Unavailable, match="different points"):
        cluster_points(np.ones((20, 2)), np.zeros(20))
    with pytest.raises(Unavailable, match="3 clusters need as many different points, and there are 1"):
        divide_points(np.ones((20, 2)), 3)


def test_agreement_is_that_of_an_independent_library_with_its_chance_beside() -> None:
    rng = np.random.default_rng(13)
    labels = rng.integers(4, size=80)
    clusters = np.where(rng.random(80) < 0.5, labels, rng.integers(3, size=80))
    found = label_agreement(clusters, [f"topic {label}" for label in labels])
    assert found.rand == pytest.approx(adjusted_rand_score(labels, clusters))
    assert found.information == pytest.approx(normalized_mutual_info_score(labels, clusters))
    assert found.p == pytest.approx(1 / 200)
    assert found.information_null < found.information
    ps = [label_agreement(rng.integers(3, size=60), list(map(str, labels[:60]))).p for _ in range(60)]
    assert 0.35 < np.mean(ps) < 0.65
    for poor in (np.zeros(80, int), np.arange(80)):
        with pytest.raises(Unavailable, match=r"80 probes have (1|80) different clusters"):
            label_agreement(poor, list(map(str, labels)))


def turning(*, runs: int = 2, n_probes: int = 40, width: int = 8, constant: bool = False) -> Histories:
    """Runs whose probes lie in one way up to a step and in another from then on."""
    rng = np.random.default_rng(14)
    made: Histories = {}
    for number in range(runs):
        before, after = rng.standard_normal((2, n_probes, width)) * np.linspace(3, 0.5, width)
        made[f"run{number}"] = {
            step: {
                "blocks[0]": ((before if at < TURN else after) + 0.2 * rng.standard_normal((n_probes, width))).astype(
                    np.float32
                )
                * (not constant)
            }
            for at, step in enumerate(STEPS)
        }
    return made


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phases") / "store"
    write_store(root, turning())
    return root


def test_the_phases_of_a_store_are_those_planted_with_their_steps_and_confidence(kept: Path) -> None:
    result = analyze_phases(open_store(kept, write=True), n_components=5, n_clusters=4, subspace=3)
    told = result.attrs["phases"]
    assert [(one["run"], one["first"], one["last"]) for one in told] == [
        (name, *ends) for name in ("run0", "run1") for ends in ((0, 16), (32, 1024))
    ]
    assert all(one["confidence"] == 1 and one["first_low"] <= 32 <= one["first_high"] for one in told[1::2])
    assert (result["phase"].isel(run=0, layer=0).values == [1] * TURN + [2] * TURN).all()
    overlap = result["overlap"].isel(run=1, layer=0).values
    assert np.isnan(overlap[0])
    assert overlap[1:].argmin() + 1 == TURN
    assert float(result["overlap_null"][0]) == pytest.approx(3 / 8)


def test_scores_centroids_and_shares_are_those_of_one_decomposition(kept: Path) -> None:
    result = analyze_phases(open_store(kept, write=True), n_components=5, n_clusters=4, subspace=3).isel(layer=0)
    A = np.array([[at["blocks[0]"] for at in of.values()] for of in turning().values()], np.float64)
    rows = A.reshape(-1, 8) - A.mean(axis=(0, 1, 2))
    _, values, vectors = np.linalg.svd(rows, full_matrices=False)
    np.testing.assert_allclose(result["explained"], values[:5] ** 2 / (values**2).sum(), rtol=1e-10)
    scores = (rows @ vectors[:5].T).reshape(2, 12, 40, 5)
    np.testing.assert_allclose(np.abs(result["score"]), np.abs(scores), atol=1e-5)
    np.testing.assert_allclose(np.abs(result["centroid"]), np.abs(scores.mean(axis=2)), atol=1e-5)
    np.testing.assert_allclose(result["deviation"], scores.std(axis=2), rtol=1e-5)
    between = 480 * ((A.mean(axis=(1, 2)) - A.mean(axis=(0, 1, 2))) ** 2).sum() / (values**2).sum()
    assert float(result["share_run"]) == pytest.approx(between, rel=1e-6)
    np.testing.assert_allclose(sum(result[f"share_{part}"] for part in ("step", "probe", "interaction")), 1)
    counted = [(result["probe_cluster"] == number).mean("probe") for number in range(1, 5)]
    np.testing.assert_allclose(result["occupancy"].transpose("cluster", ...), counted)
    told = result.attrs["phases"][1]
    filled = result["occupancy"].isel(run=0, step=slice(TURN, None)).mean("step")
    np.testing.assert_allclose(told["occupancy"], filled)


def test_a_new_checkpoint_costs_the_comparison_of_its_subspace_with_its_neighbours(
    root: Path,
) -> None:
    made = turning(runs=1)
    store = write_store(root, {"run0": {step: made["run0"][step] for step in STEPS[:-1]}})
    options = {"n_components": 3, "n_clusters": 2, "subspace": 3}
    analyze_phases(store, **options)  # type: ignore[arg-type]
    write_store(root, {"run0": {STEPS[-1]: made["run0"][STEPS[-1]]}})
    told: dict[str, int] = {}
    analyze_phases(store, advance=lambda what, _, total: told.update({what: total}), **options)  # type: ignore[arg-type]
    assert told == {"distances": 11, "subspaces": 1, "bases": 1}
    told.clear()
    analyze_phases(store, advance=lambda what, _, total: told.update({what: total}), **options)  # type: ignore[arg-type]
    assert not told


def test_a_layer_that_never_varies_is_unavailable_with_its_reason(root: Path) -> None:
    store = write_store(root, turning(runs=1, constant=True))
    result = analyze_phases(store, n_components=2, subspace=2)
    reasons = " ".join(row[-1] for row in result.attrs["unavailable"])
    assert "nothing varies" in reasons
    assert "have 0" in reasons
    assert not result.attrs["phases"]
    assert result["occupancy"].isnull().all()
    assert result["overlap"].isnull().all()


def alignment(X: Floats, Y: Floats) -> float:
    """Debiased centred kernel alignment with the unbiased estimator of Song et al. (2012), written out."""
    K, L = ((A @ A.T) * (1 - np.eye(len(A))) for A in (X, Y))
    n = len(K)

    def dependence(K: Floats, L: Floats) -> float:
        products = np.trace(K @ L) + K.sum() * L.sum() / ((n - 1) * (n - 2)) - 2 * (K @ L).sum() / (n - 2)
        return float(products / (n * (n - 3)))

    return dependence(K, L) / float(np.sqrt(dependence(K, K) * dependence(L, L)))


@pytest.mark.parametrize("n_probes", [5, 8, 14])
def test_fewer_probes_than_groups_are_left_out_one_by_one(root: Path, n_probes: int) -> None:
    made = turning(n_probes=n_probes)
    told = analyze_phases(write_store(root, made), n_components=1, subspace=1).attrs["phases"]
    assert [(one["first"], one["last"]) for one in told] == [(0, 16), (32, 1024)] * 2
    X = [at["blocks[0]"].astype(np.float64) for at in made["run0"].values()]
    group = probe_groups(n_probes)
    left = [[A[group != number] for A in X] for number in range(n_probes)]
    K, *without = (np.array([[alignment(A, B) for B in of] for A in of]) for of in (X, *left))
    drawn = [segment_path(replicate) for replicate in probe_replicates(K, np.stack(without, axis=-1))]
    assert told[1]["confidence"] == boundary_support([TURN], drawn)[0].confidence


@pytest.mark.parametrize("lost", [[128], STEPS])
def test_a_checkpoint_that_is_not_finite_is_left_out_and_all_others_keep_their_numbers(
    tmp_path: Path, lost: list[int]
) -> None:
    made, options = turning(), {"n_components": 3, "n_clusters": 4, "subspace": 2}
    for step in lost:
        made["run1"][step]["blocks[0]"][7, 0] = np.nan
    found = analyze_phases(write_store(tmp_path / "broken", made), **options)  # type: ignore[arg-type]
    reasons = [[run, step, why] for run, step, _, why in found.attrs["unavailable"] if step is not None]
    assert reasons == [["run1", step, "left out: activations of 1 of 40 probes are not finite"] for step in lost]
    kept = {step: at for step, at in made["run1"].items() if step not in lost}
    without = {"run0": made["run0"]} | ({"run1": kept} if kept else {})
    expected = analyze_phases(write_store(tmp_path / "without", without), **options)  # type: ignore[arg-type]
    assert found.attrs["phases"] == expected.attrs["phases"]
    assert len(expected.attrs["phases"]) == 2 * len(without)
    for name, values in expected.items():
        if values.dtype.kind == "f":
            there = found[name].sel(run=list(without)) if "run" in values.dims else found[name]
            np.testing.assert_allclose(there, values, rtol=1e-9, atol=1e-12, err_msg=str(name))
    assert found["score"].sel(run="run1", step=lost).isnull().all()


def test_the_command_prints_phases_and_writes_every_step(kept: Path, tmp_path: Path) -> None:
    asked = ("--store", kept, "analyze", "phases", "--components", "5", "--clusters", "4", "--subspace", "3")
    shown = run(*asked, "--csv", tmp_path / "all.csv")
    assert "0-16, 32-1024 (100%)" in shown.stdout
    assert "between runs" in shown.stdout
    lines = (tmp_path / "all.csv").read_text().splitlines()
    assert lines[0].startswith("run,step,layer,phase,overlap,mean_cosine,label_")
    assert len(lines) == 1 + 24
    document = json.loads(run(*asked, "--json").stdout)
    assert [one["first"] for one in document["phases"]] == [0, 32, 0, 32]
    assert len(document["bases"][0]["explained"]) == 5
    assert len(document["rows"]) == 24


def test_what_cannot_be_answered_is_refused_in_one_line(root: Path, kept: Path) -> None:
    many = open_store(kept, write=True)
    for options, words in (
        ({"n_components": 9}, "9 components of .*which has 8 features, over 40 probes: expected 1 to 8"),
        ({"n_components": 0}, "expected 1 to 8"),
        ({"n_components": 3, "n_clusters": 41}, "41 clusters of 40 probes: expected 2 to 40"),
        ({"n_components": 3, "n_clusters": 1}, "1 clusters"),
        ({"n_components": 3, "subspace": 0}, "subspace of 0"),
        ({"n_components": 3, "cluster": Cluster(memory=500_000_100)}, "give more --memory"),
    ):
        with pytest.raises(InvalidInput, match=words):
            analyze_phases(many, **options)
    made = turning()
    alone = write_store(root, {"run0": {0: made["run0"][0]}})
    with pytest.raises(Unavailable, match="phases need 2 checkpoints or more, and run0 has 1"):
        analyze_phases(alone, n_components=3)
    write_store(root, {"run1": turning(width=6)["run1"]})
    with pytest.raises(InvalidInput, match="6 and 8 features"):
        analyze_phases(alone, n_components=3)
    few = analyze_phases(
        write_store(root, {"run2": {step: made["run1"][step] for step in STEPS[:4]}}),
        choice=Choice(runs=["run2"]), n_components=3, subspace=9,
    )  # fmt: skip
    reasons = " ".join(row[-1] for row in few.attrs["unavailable"])
    assert "two phases need 6 checkpoints or more, and there are 4" in reasons
    assert "a subspace of 9 dimensions" in reasons
    assert few["overlap_null"].isnull().all()
    assert few["explained"].notnull().all()
