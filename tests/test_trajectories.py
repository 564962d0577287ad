"""Spectra, paths, similarity, embeddings and merges of a store: right numbers, kept, the same wherever they run."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from synthetic import histories, write_store
from test_analysis import reference_operator, run

from replay import jobs
from replay.analyses.embedding import analyze_embedding
from replay.analyses.merging import merge_operators
from replay.analyses.multislice import analyze_multislice
from replay.analyses.path import analyze_path
from replay.analyses.selection import Choice
from replay.analyses.similarity import analyze_similarity
from replay.analyses.spectrum import analyze_spectrum
from replay.analyses.spread import analyze_spread
from replay.geometry.gauge import DiffusionGauge
from replay.geometry.measures import MEASURES, find_measure
from replay.geometry.merging import DiffusionMerging
from replay.jobs import Cluster
from replay.opening import open_store
from store.catalog import Store
from store.commits import RevisionRecord, put_run
from store.errors import InvalidInput, Unavailable, UnknownRun

RUNS = ("run0", "run1", "run2")
STEPS = [0, 100, 200, 300, 400]
LAYERS = ["blocks[0]:output:mean", "blocks[1]:output:mean"]
VERBS = (
    ("analyze", "spread"), ("analyze", "path"), ("analyze", "spectrum"), ("analyze", "similarity"),
    ("analyze", "similarity", "--across", "steps"), ("analyze", "similarity", "--across", "runs"),
    ("analyze", "embed"), ("analyze", "embed", "--method", "mds"), ("analyze", "multislice"),
    ("analyze", "dimension"), ("analyze", "phases"), ("merge", "--strategy", "frobenius_mean"),
)  # fmt: skip
"""Every question of this kind that the command line knows."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three made-up runs with five steps and two layers, and no analysis."""
    root = tmp_path_factory.mktemp("trajectories") / "store"
    write_store(root, histories())
    return root


@pytest.fixture
def store(made: Path, root: Path) -> Store:
    shutil.copytree(made, root)
    return open_store(root, write=True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all tasks that measure points or pairs from now on."""
    names: list[str] = []
    original = jobs.execute

    def listing(tasks: dict[str, object], **options: object) -> None:
        names.extend(tasks)
        original(tasks, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("replay.analyses.measuring.execute", listing)
    return names


def activations(name: str, step: int, layer: int) -> np.ndarray:
    return histories()[name][step][f"blocks[{layer}]"]


def operator(name: str, step: int, layer: int) -> np.ndarray:
    return reference_operator(activations(name, step, layer))


def debiased_cka(X: np.ndarray, Y: np.ndarray) -> float:
    """Song et al. (2012), written out."""

    def hsic(K: np.ndarray, L: np.ndarray) -> float:
        n = len(K)
        K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
        total: float = (K * L).sum() + K.sum() * L.sum() / ((n - 1) * (n - 2)) - 2 * K.sum(0) @ L.sum(0) / (n - 2)
        return total

    K, L = (A.astype(float) @ A.T.astype(float) for A in (X, Y))
    return float(hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L)))


def test_the_spectrum_equals_that_of_the_written_out_operator(store: Store) -> None:
    result = analyze_spectrum(store, k=7)
    at = result.sel(run="run1", step=200, layer=LAYERS[1])
    P = operator("run1", 200, 1)
    values = np.sort(np.linalg.eigvals(P).real)[::-1]
    np.testing.assert_allclose(at["eigenvalues"], values[:7], atol=2e-6)
    second = np.sort(np.abs(values))[::-1][1]
    np.testing.assert_allclose(at["spectral_gap"], 1 - second, atol=2e-6)
    stationary = np.linalg.matrix_power(P, 2000)[0]
    np.testing.assert_allclose(at["stationary"], stationary, atol=1e-6)
    np.testing.assert_allclose(at["stationary_entropy"], -(stationary * np.log(stationary)).sum(), rtol=1e-5)
    sizes = P.sum(1) ** 2 / (P**2).sum(1)
    np.testing.assert_allclose(at["neighbourhood_mean"], sizes.mean(), rtol=1e-5)
    assert at["spectral_gap_low"] < at["spectral_gap"] < at["spectral_gap_high"]
    assert result.attrs["uniform"]["stationary_entropy"] == pytest.approx(np.log(40))


def test_a_new_checkpoint_costs_one_spectrum_a_layer_and_its_own_pairs(store: Store, asked: list[str]) -> None:
    analyze_spectrum(store, choice=Choice(runs=["run0"]))
    analyze_embedding(store, choice=Choice(runs=["run0"]), method="mds")
    asked.clear()
    fresh = {"run0": {500: histories(seed=5)["run0"][400]}}
    write_store(store.root, fresh)
    analyze_spectrum(store, choice=Choice(runs=["run0"]))
    assert len(asked) == 1  # one checkpoint
    asked.clear()
    result = analyze_embedding(store, choice=Choice(runs=["run0"]), method="mds")
    assert len(asked) == 2  # one task a layer
    recipe = "SELECT count(*) FROM measurement JOIN recipe ON recipe.id = recipe WHERE text LIKE '%\"comparisons\"%'"
    with store.index.read() as session:
        kept = session.connection().exec_driver_sql(recipe).scalar_one()
    assert kept == 2 * 15  # six points a layer: 10 pairs before, 5 now
    P = [operator("run0", step, 0) for step in STEPS] + [reference_operator(fresh["run0"][500]["blocks[0]"])]
    D = [[np.linalg.norm(A - B) for B in P] for A in P]
    np.testing.assert_allclose(result["distance"][0], D, atol=1e-5)


def test_similarity_of_layers_steps_and_runs_equals_the_written_out_measure(store: Store) -> None:
    layers = analyze_similarity(store)
    assert layers["similarity"].dims == ("panel", "row", "column")
    assert list(layers["panel"].values) == [f"{run}, step 400" for run in RUNS]
    assert list(layers["label"].values) == LAYERS
    for panel, name in enumerate(RUNS):
        expected = debiased_cka(activations(name, 400, 0), activations(name, 400, 1))
        np.testing.assert_allclose(layers["similarity"][panel], [[1, expected], [expected, 1]], atol=1e-9)
    steps = analyze_similarity(store, across="steps", choice=Choice(runs=["run2"], layers=["blocks[1]"]))
    assert list(steps["label"].values) == [str(step) for step in STEPS]
    expected = debiased_cka(activations("run2", 100, 1), activations("run2", 300, 1))
    np.testing.assert_allclose(steps["similarity"][0, 1, 3], expected, atol=1e-9)
    runs = analyze_similarity(store, across="runs", steps=[0, 200])
    assert list(runs["panel"].values)[:2] == [f"{LAYERS[0]}, step 0", f"{LAYERS[0]}, step 200"]
    expected = debiased_cka(activations("run0", 200, 0), activations("run2", 200, 0))
    np.testing.assert_allclose(runs["similarity"][1, 0, 2], expected, atol=1e-9)
    assert (runs["null"].values[:, ~np.eye(3, dtype=bool)] == 0).all()
    assert list(runs["weights"].sel(run="run1").values) == ["run1-0", "run1-200"]


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_every_measure_serves_spread_similarity_and_embedding(store: Store, name: str) -> None:
    measure, one = find_measure(name), Choice(layers=["blocks[0]"])
    spread = analyze_spread(store, choice=one, measure=measure)
    first, second, third = (activations(run, 300, 0) for run in RUNS)
    gauge = DiffusionGauge()
    points = [measure.view(gauge(X) if measure.of == "operator" else X) for X in (first, second, third)]
    values = measure.to_distance(measure.compare(points))
    np.testing.assert_allclose(spread["spread"].sel(step=300)[0], values[np.triu_indices(3, 1)].mean(), rtol=1e-5)
    at = spread.isel(layer=0)
    assert (at["spread_low"] <= at["spread"]).all()
    assert (at["spread"] <= at["spread_high"]).all()
    assert (at["spread_low"] < at["spread_high"]).any()
    assert at["spread_ceiling"].isnull().all() == (measure.no_null is not None)
    similarity = analyze_similarity(store, choice=one, measure=measure, across="runs")
    np.testing.assert_allclose(np.diagonal(similarity["similarity"][0]), 0.0 if measure.sense == "distance" else 1.0)
    assert np.isnan(similarity["null"].values[0][0, 1]) == (measure.no_null is not None)
    embedded = analyze_embedding(store, choice=one, measure=measure, method="mds")
    assert not embedded["embedding"].isnull().any()
    assert store.result("spread", measure=name).attrs["measure_title"].startswith(measure.title)
    with pytest.raises(UnknownRun, match="no result 'spread' by nothing"):
        store.result("spread", measure="nothing")
    assert f"spread      {name}" in run("--store", store.root, "ls", "results").stdout


def test_a_path_is_made_of_the_distances_between_its_checkpoints(store: Store) -> None:
    result = analyze_path(store)
    P = [operator("run1", step, 0) for step in STEPS]
    links = [np.linalg.norm(B - A) for A, B in pairwise(P)]
    at = result.sel(run="run1", layer=LAYERS[0])
    assert np.isnan(at["velocity"].values[0])
    np.testing.assert_allclose(at["velocity"][1:], np.array(links) * 10, rtol=1e-5)
    np.testing.assert_allclose(at["velocity_log"][2], links[1] / np.log(201 / 101), rtol=1e-5)
    np.testing.assert_allclose(at["length"], np.cumsum([0, *links]), rtol=1e-5)
    np.testing.assert_allclose(at["distance_to_final"], [np.linalg.norm(A - P[-1]) for A in P], rtol=1e-5)
    np.testing.assert_allclose(at["straightness"], np.linalg.norm(P[0] - P[-1]) / sum(links), rtol=1e-5)
    assert (at["length_low"] <= at["length"]).all()
    assert at["straightness_low"] < at["straightness"] < at["straightness_high"]


def test_an_embedding_of_distances_keeps_order_and_says_how_far_it_can_be_trusted(store: Store) -> None:
    result = analyze_embedding(store)
    assert result["embedding"].dims == ("layer", "point", "component")
    assert result.sizes["point"] == 15
    assert list(result["run"].values[:6]) == ["run0"] * 5 + ["run1"]
    assert list(result["step"].values[:6]) == [*STEPS, 0]
    assert (result["trustworthiness"] > result["random_agreement"]).all()
    P, Q = operator("run0", 0, 1), operator("run2", 400, 1)
    np.testing.assert_allclose(result["distance"][1, 0, 14], np.linalg.norm(P - Q), rtol=1e-5)


def test_the_multislice_embedding_has_a_place_for_every_step_and_probe(store: Store) -> None:
    result = analyze_multislice(store, choice=Choice(runs=["run0", "run1"], layers=["blocks[1]"]))
    assert result["multislice"].shape == (2, 1, 5, 40, 2)
    assert not result["multislice"].isnull().any()
    assert list(result["label"].values[:2]) == ["even", "odd"]
    with pytest.raises(InvalidInput, match=r"one run's kernel takes .* give more --memory"):
        analyze_multislice(store, knn=6, cluster=Cluster(memory=500_000_001))


def test_a_merge_is_kept_with_its_members_and_places(store: Store) -> None:
    merges = merge_operators(store, DiffusionMerging("frobenius_mean"), choice=Choice(layers=["blocks[1]"]))
    assert merges.unavailable == {}
    (merged,) = merges.merged
    mean = np.mean([operator(name, 400, 1) for name in RUNS], axis=0)
    np.testing.assert_allclose(merged["operator"], mean, atol=1e-6)
    np.testing.assert_allclose(merged["operator"].sum("probe_to"), 1, atol=1e-5)
    assert list(merged["member"].values) == list(RUNS)
    P = operator("run1", 400, 1)
    scaled = np.linalg.norm(P - mean) / np.hypot(np.linalg.norm(P), np.linalg.norm(mean))
    np.testing.assert_allclose(merged["distance"][1], scaled, rtol=1e-4)
    assert merged["phate"].shape == merged["diffusion_map"].shape == (40, 2)
    assert list(merged["label"].values[:2]) == ["even", "odd"]
    assert not merged.attrs["reversible"]
    again = store.result("merge")
    np.testing.assert_array_equal(again["operator"], merged["operator"])
    assert (again.attrs["step"], again.attrs["across"]) == (400, "runs")


@pytest.mark.parametrize(
    ("across", "n_merges", "members"),
    [
        ("layers", 3, LAYERS),
        ("steps", 6, [f"step{step}" for step in STEPS]),
        ("all", 1, [f"{name} step400 {layer}" for name in RUNS for layer in LAYERS]),
    ],
)
def test_layers_steps_and_everything_can_be_merged(
    store: Store, across: str, n_merges: int, members: list[str]
) -> None:
    merges = merge_operators(store, DiffusionMerging("frobenius_mean"), across=across)  # type: ignore[arg-type]
    assert len(merges.merged) == n_merges
    assert list(merges.merged[0]["member"].values) == members


def test_weights_are_by_name_and_a_wrong_one_leaves_nothing(store: Store) -> None:
    merging, choice = DiffusionMerging("weighted_interpolation"), Choice(layers=["blocks[0]"])
    with pytest.raises(InvalidInput, match=r"run0, run1, run2\); missing: run2"):
        merge_operators(store, merging, choice=choice, weights={"run0": 1, "run1": 1})
    with pytest.raises(InvalidInput, match="unknown: run7"):
        merge_operators(store, merging, choice=choice, weights={"run0": 1, "run1": 1, "run2": 1, "run7": 1})
    assert len(store.results()) == 0
    assert not list((store.root / "staging").iterdir())
    (merged,) = merge_operators(store, merging, choice=choice, weights={"run0": 3, "run1": 1, "run2": 0}).merged
    expected = 0.75 * operator("run0", 400, 0) + 0.25 * operator("run1", 400, 0)
    np.testing.assert_allclose(merged["operator"], expected, atol=1e-6)
    np.testing.assert_allclose(merged["share"], [0.75, 0.25, 0])


@pytest.mark.parametrize("strategy", ["log_euclidean", "alternating", "ot_barycenter"])
def test_every_strategy_gives_a_markov_operator_that_is_kept(store: Store, strategy: str) -> None:
    shown = run("--store", store.root, "merge", "--strategy", strategy, "--layers", "blocks[1]").stdout
    merged = Store(store.root).result("merge")
    assert (merged["operator"] >= 0).all()
    np.testing.assert_allclose(merged["operator"].sum("probe_to"), 1, atol=1e-5)
    assert f"{strategy} across runs" in shown


def test_sparse_operators_equal_those_of_graphtools_and_stand_apart_from_dense_ones(store: Store) -> None:
    import graphtools

    run("--store", store.root, "gauge", "--kernel", "decay", "--knn", "5")
    with pytest.raises(UnknownRun, match="has no operators yet"):
        Store(store.root).operators("run1")
    P = Store(store.root).sparse_operator("run1", "step200", layer="blocks[1]:output:mean")
    theirs = graphtools.Graph(activations("run1", 200, 1).astype(float), n_pca=None, knn=5, decay=40, thresh=1e-4).P
    np.testing.assert_allclose(P.toarray(), theirs.toarray(), atol=1e-6)
    assert P.nnz < 0.7 * 40 * 40
    run("--store", store.root, "gauge")
    assert Store(store.root).operators("run1")["operator"].shape == (5, 2, 40, 40)


def test_operators_of_many_probes_are_streamed_to_the_store(root: Path) -> None:
    X = np.random.default_rng(0).normal(size=(2100, 4)).astype(np.float32)
    write_store(root, {"run0": {0: {"blocks[0]": X}}})
    run("--store", root, "gauge")
    P = Store(root).operators("run0")["operator"][0, 0].values
    expected = DiffusionGauge()(X).matrix
    assert np.linalg.norm(P - expected) <= 5e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_repeated_question_computes_nothing_and_prints_the_same(
    store: Store, verb: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run("--store", store.root, *verb)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a task was run")

    for module in ("measuring", "merging", "multislice"):
        monkeypatch.setattr(f"replay.analyses.{module}.execute", lambda tasks, **_: refuse() if tasks else None)
    assert run("--store", store.root, *verb).stdout == first.stdout


def test_worker_processes_give_the_same_numbers_to_the_last_bit(store: Store, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "copy")
    verb = ("analyze", "path", "--json")
    here = run("--store", store.root, *verb).stdout
    assert run("--store", tmp_path / "copy", *verb, "--workers", "2").stdout == here
    here = run("--store", store.root, "merge", "--strategy", "log_euclidean", "--json").stdout
    there = run("--store", tmp_path / "copy", "merge", "--strategy", "log_euclidean", "--json", "--workers", "1").stdout
    assert there == here


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_table_json_and_plot_are_written_for_every_question(
    store: Store, verb: tuple[str, ...], tmp_path: Path
) -> None:
    plot, table = tmp_path / "plot.png", tmp_path / "table.csv"
    one = ["--layers", "blocks[1]"] if verb[0] == "merge" else []
    shown = run("--store", store.root, *verb, "--plot", plot, *(one or ["--csv", str(table)]))
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert f"written: {plot}" in shown.stderr
    assert "nan" not in shown.stdout.lower()
    if one:
        assert "--plot draws one " in run("--store", store.root, *verb, "--plot", plot, code=1).stderr
    document = json.loads(run("--store", store.root, *verb, "--json").stdout)
    if verb[0] == "merge":
        assert [entry["layer"] for entry in document] == LAYERS
        return
    assert len(table.read_text().splitlines()) - 1 == len(document["rows"]) > 0
    assert document["probes"] == "made-up-40"


def test_too_few_of_anything_is_one_line_and_nothing_is_kept(root: Path, tmp_path: Path) -> None:
    write_store(root, histories(runs=1, steps=2, layers=1))
    for verb, line in (
        (("analyze", "spread"), "spread is the distance between runs and needs two"),
        (("analyze", "path"), "a path needs 3 checkpoints or more, and run0 has 2"),
        (("analyze", "embed"), "an embedding needs 4 checkpoints or more, and run0 have 2"),
        (("analyze", "similarity"), "across layers needs two of them, and there is only blocks[0]:output:mean"),
        (("analyze", "similarity", "--across", "runs"), "across runs needs two of them, and there is only run0"),
        (("analyze", "embed", "--seed", "-1"), "seed must be a whole number from 0 to 4294967295, not -1"),
        (("analyze", "multislice", "--seed", "99999999999"), "seed must be a whole number from 0 to 4294967295"),
        (("analyze", "multislice", "--neighbours", "0"), "--neighbours must be a whole number of at least 1, not 0"),
        (("merge", "--strategy", "frobenius_mean"), "a merge needs two operators, and there is only run0"),
        (("merge", "--strategy", "frobenius_mean", "--weight", "a=1", "--weight", "a=2"), "--weight names 'a' twice"),
        (("merge", "--strategy", "frobenius_mean", "--across", "steps", "--memory", "500MB"), "merging 2 operators"),
        (("gauge", "--kernel", "decay", "--alpha", "0.3", "--symmetric"), "has no --alpha, --symmetric"),
        (("gauge", "--decay", "10"), "--decay and --thresh belong to --kernel decay"),
        (("analyze", "spread", "--measure", "frobenious"), "did you mean frobenius"),
        (("analyze", "spectrum", "--knn", "few"), "--knn must be a whole number of at least 1, or none, not 'few'"),
        (("analyze", "spectrum", "--alpha", "2"), "alpha must be a number from 0 to 1, not 2.0"),
        (("merge", "--strategy", "mean"), "strategy must be one of"),
        (("merge", "--strategy", "frobenius_mean", "--weight", "run0"), "--weight 'run0' is not NAME=NUMBER"),
        (("merge", "--strategy", "frobenius_mean", "--step", "7"), "step 7 is not there in all of run0"),
        (("analyze", "embed", "--memory", "lots"), "lots"),
    ):
        shown = run("--store", root, *verb, code=1)
        assert line in shown.stderr
        assert len(shown.stderr.strip().splitlines()) == 1
    write_store(tmp_path / "few", histories(runs=2, steps=3, layers=2, n_probes=3))
    shown = run("--store", tmp_path / "few", "analyze", "similarity", code=0)
    assert "unavailable: " in shown.stderr
    assert len(Store(root).results()) == 0


def test_a_layer_whose_activations_are_all_equal_is_unavailable_and_the_others_stand(root: Path) -> None:
    made_up = histories()
    made_up["run1"][200]["blocks[0]"] = np.ones((40, 12), np.float32)
    store = write_store(root, made_up)
    reason = "have the same activations"
    spread = analyze_spread(store)
    assert np.isnan(spread["spread"].sel(step=200, layer=LAYERS[0]))
    assert spread["spread"].isnull().sum() == 1
    assert any(reason in entry[-1] for entry in spread.attrs["unavailable"])
    spectrum = analyze_spectrum(store)
    assert spectrum["spectral_gap"].isnull().sum() == 1
    embedded = analyze_embedding(store, method="mds")
    assert embedded["embedding"].isnull().sum() == 2  # the two coordinates of one point
    assert [entry[:3] for entry in embedded.attrs["unavailable"]] == [[LAYERS[0], "run1", 200]]
    similarity = analyze_similarity(store, steps=[200])
    assert similarity["similarity"].isnull().sum() == 2
    path = analyze_path(store)
    assert path["length"].isnull().sum() == 5
    merges = merge_operators(store, DiffusionMerging("frobenius_mean"), steps=[200])
    assert len(merges.merged) == 1
    assert reason in next(iter(merges.unavailable.values()))
    with pytest.raises(Unavailable, match="a path needs 3"):
        analyze_path(write_store(root, {"short": {0: made_up["run0"][0]}}), choice=Choice(runs=["short"]))


def test_a_layer_that_one_run_lacks_is_named_by_every_question(root: Path) -> None:
    made_up = histories()
    for step in (0, 100, 200, 400):
        del made_up["run1"][step]["blocks[1]"]
    store = write_store(root, made_up)
    merges = merge_operators(store, DiffusionMerging("frobenius_mean"), steps=[200])
    assert [merged.attrs["layer"] for merged in merges.merged] == [LAYERS[0]]
    assert list(merges.unavailable.values()) == [f"run1 has not {LAYERS[1]} at step 200: ingest it with --layers"]
    path = analyze_path(store)
    assert path["length"].sel(run="run1", layer=LAYERS[1]).isnull().all()
    assert path["length"].isnull().sum() == 5
    assert any(
        "a path needs 3 checkpoints or more, and there are 1" in entry[-1] for entry in path.attrs["unavailable"]
    )
    similarity = analyze_similarity(store, steps=[200])
    assert similarity["similarity"].isnull().sum() == 3
    assert similarity.attrs["unavailable"][0][-1] == "this checkpoint has not this layer: ingest it with --layers"


def test_graphs_in_parts_are_named_and_their_merge_is_kept_without_places(root: Path) -> None:
    made_up = histories()
    made_up["run2"][400]["blocks[0]"][7] += 1e4
    store = write_store(root, made_up)
    for verb in (("spread",), ("path",), ("spectrum",), ("similarity", "--measure", "frobenius"), ("embed",)):
        told = run("--store", root, "analyze", *verb).stderr
        assert "a graph falls into 2 parts, 1 of its probes are linked to none; a larger --knn may join them" in told
        assert (LAYERS[0] in told) == (verb[0] != "similarity")  # there a panel is a run at a step
    (merged, _) = merge_operators(store, DiffusionMerging("log_euclidean"), choice=Choice(runs=["run2", "run1"])).merged
    assert merged.attrs["disconnected"] == [["run2", 2, 1]]
    np.testing.assert_allclose(merged["operator"].sum("probe_to"), 1, atol=1e-5)


def test_a_new_commit_of_the_same_weights_is_told_anew(store: Store) -> None:
    questions = (analyze_spread, analyze_path, analyze_spectrum, analyze_similarity, analyze_multislice)
    for question in questions:
        question(store)
    steps = [
        RevisionRecord(f"step{step}", commit="new", step=step, weights=f"run0-{step}", tokenizer="t") for step in STEPS
    ]
    put_run(store, "run0", source="folder", location="run0", records=steps)
    for question in questions:
        assert (question(store)["commit"].sel(run="run0") == "new").all()
    assert (analyze_embedding(store)["commit"].values[:5] == "new").all()
    (merged, _) = merge_operators(store, DiffusionMerging("frobenius_mean")).merged
    assert list(merged["commit"].values) == ["new", "", ""]
    assert list(merged["weights"].values) == ["run0-400", "run1-400", "run2-400"]
