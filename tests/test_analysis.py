"""`replay analyze spread` on a store: right numbers, only what is missing, the same wherever it runs."""

import csv
import json
import pickle
import shutil
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from runs import write_run

import cli
from replay.analyses.selection import Choice
from replay.analyses.spread import analyze_spread
from replay.geometry.gauge import DiffusionGauge
from replay.jobs import Cluster
from replay.opening import open_store
from store.catalog import Store
from store.commits import FindingRecord, put_findings, put_run
from store.errors import InvalidInput, SourceUnreachable, Unavailable, UnknownLayer, UnknownRun


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


def ingest(root: Path, *paths: Path, probes: Path) -> None:
    given = [argument for path in paths for argument in ("--path", path)]
    run("--store", root, "ingest", *given, "--revisions", "all", "--probes", probes)


@pytest.fixture
def copied(replayed: Path, root: Path) -> Path:
    """A store of this test's own."""
    shutil.copytree(replayed, root)
    return root


def reference_operator(X: np.ndarray, knn: int = 15, alpha: float = 1.0) -> np.ndarray:
    """The definition, term by term, in float64 and by differences."""
    X = X.astype(np.float64)
    d = np.sqrt(((X[:, None] - X[None]) ** 2).sum(-1))
    sigma = np.sort(d, axis=1)[:, min(knn, len(X) - 1)]
    K = np.exp(-(d**2) / np.outer(sigma, sigma))
    np.fill_diagonal(K, 0)
    q = K.sum(1)
    K = K / np.outer(q**alpha, q**alpha)
    P: np.ndarray = K / K.sum(1, keepdims=True)
    return P


@pytest.mark.parametrize(("knn", "alpha"), [(15, 1.0), (5, 0.0), (10, 0.5)])
def test_spread_equals_an_independent_numpy_version(copied: Path, knn: int, alpha: float) -> None:
    result = analyze_spread(open_store(copied, write=True), gauge=DiffusionGauge(knn=knn, alpha=alpha))
    assert list(result["step"].values) == [0, 1, 2, 4, 8]
    assert result.sizes["layer"] == 3
    X = {name: Store(copied).activations(name)["activations"].values for name in ("seed1", "seed2", "seed3")}
    for step in range(5):
        for layer in range(3):
            operators = [reference_operator(X[name][step, layer], knn, alpha) for name in X]
            pairs = list(combinations(operators, 2))
            raw = np.mean([np.linalg.norm(P - Q) for P, Q in pairs])
            scaled = np.mean([np.linalg.norm(P - Q) / np.hypot(np.linalg.norm(P), np.linalg.norm(Q)) for P, Q in pairs])
            found = result.isel(step=step, layer=layer)
            np.testing.assert_allclose(found["spread"], raw, rtol=1e-6)
            np.testing.assert_allclose(found["spread_normalized"], scaled, rtol=1e-6)
            assert found["spread_low"] < found["spread"] < found["spread_high"]
            assert found["spread_normalized"] < found["spread_normalized_ceiling"] < 1


def test_kept_operators_equal_the_reference_and_are_read_through_the_store(copied: Path) -> None:
    with pytest.raises(UnknownRun, match="run 'seed2' has no operators yet: `replay gauge` keeps them"):
        Store(copied).operators("seed2")
    assert "45 operators, 45 of them computed now" in run("--store", copied, "gauge").stdout
    assert "45 operators, 0 of them computed now" in run("--store", copied, "gauge").stdout
    P = Store(copied).operators("seed2", layer="blocks[-1]:output:mean")["operator"]
    assert P.dims == ("revision", "layer", "probe", "probe_to")
    assert P.shape == (5, 1, 40, 40)
    X = Store(copied).activations("seed2", layers="blocks[2]")["activations"][3, 0].values
    np.testing.assert_allclose(P[3, 0].values, reference_operator(X), atol=1e-6)
    np.testing.assert_allclose(P.values.sum(-1), 1, atol=1e-5)


def test_equal_runs_have_no_spread_and_no_rate(root: Path, family: Path, tmp_path: Path, probe_file: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(family / "seed1", tmp_path / name)
    ingest(root, tmp_path / "a", tmp_path / "b", probes=probe_file)
    result = analyze_spread(open_store(root, write=True))
    for name in ("spread", "spread_low", "spread_high", "spread_normalized"):
        assert (result[name].values == 0).all()
    assert np.isnan(result["rate"].values).all()
    assert result.attrs["identical"] == [["a", "b"]]
    assert "identical: a and b hold the same checkpoints" in run("--store", root, "analyze", "spread").stderr
    reasons = [reason for _, _, reason in result.attrs["unavailable"]]
    assert len(reasons) == 2 * 3  # rate and phases of each layer
    assert all("needs 3 steps with a positive spread" in reason for reason in reasons)


def test_unequal_grids_join_on_the_step_and_name_what_is_left_out(
    root: Path, family: Path, tmp_path: Path, probe_file: Path
) -> None:
    shutil.copytree(family / "seed1", tmp_path / "a")
    shutil.copytree(family / "seed2", tmp_path / "b")
    shutil.rmtree(tmp_path / "a" / "step0")
    shutil.rmtree(tmp_path / "b" / "step2")
    ingest(root, tmp_path / "a", tmp_path / "b", probes=probe_file)
    result = run("--store", root, "analyze", "spread")
    assert "left out: a step2: another run lacks the step" in result.stderr
    assert "left out: b step0: another run lacks the step" in result.stderr
    ds = Store(root).result("spread")
    assert list(ds["step"].values) == [1, 4, 8]
    X = {name: Store(root).activations(name) for name in "ab"}
    P, Q = (reference_operator(X[n]["activations"][list(X[n]["step"].values).index(4), 0].values) for n in "ab")
    np.testing.assert_allclose(ds["spread"].sel(step=4)[0], np.linalg.norm(P - Q), rtol=1e-6)


def test_relabelling_all_probes_jointly_changes_nothing(
    replayed: Path, root: Path, family: Path, tmp_path: Path, probe_file: Path
) -> None:
    lines = probe_file.read_text().splitlines()
    order = np.random.default_rng(0).permutation(len(lines))
    shuffled = tmp_path / "shuffled.jsonl"
    shuffled.write_text("\n".join(lines[i] for i in order) + "\n")
    ingest(root, *(family / f"seed{seed}" for seed in (1, 2, 3)), probes=shuffled)
    shutil.copytree(replayed, tmp_path / "copy")
    ours = analyze_spread(open_store(root, write=True))
    theirs = analyze_spread(open_store(tmp_path / "copy", write=True))
    for name in ("spread", "spread_normalized", "spread_ceiling"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-6)


def test_a_repeated_analysis_computes_nothing_and_another_choice_reuses_every_pair(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from replay import jobs

    asked = 0
    original = jobs.execute

    def counting(tasks: dict[str, object], **options: object) -> None:
        nonlocal asked
        asked += len(tasks)
        original(tasks, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("replay.analyses.measuring.execute", counting)
    first = run("--store", copied, "analyze", "spread")
    assert asked == 15  # 5 steps x 3 layers
    asked = 0
    assert run("--store", copied, "analyze", "spread").stdout == first.stdout
    one = run("--store", copied, "analyze", "spread", "--layers", "blocks[1]", "--json")
    two = run("--store", copied, "analyze", "spread", "--runs", "seed1", "--runs", "seed3", "--json")
    assert asked == 0
    assert {row["layer"] for row in json.loads(one.stdout)["rows"]} == {"blocks[1]:output:mean"}
    assert json.loads(two.stdout)["runs"] == ["seed1", "seed3"]
    whole = Store(copied).results()["parameters"][0]["layers"]
    assert whole == [f"blocks[{n}]:output:mean" for n in range(3)]


def test_results_of_one_store_are_kept_apart_by_runs_and_parameters(copied: Path) -> None:
    run("--store", copied, "analyze", "spread")
    run("--store", copied, "analyze", "spread", "--runs", "seed1", "--runs", "seed3", "--alpha", "0")
    store = Store(copied)
    assert store.result("spread").attrs["runs"] == ["seed1", "seed3"]
    assert store.result("spread", runs=["seed3", "seed1", "seed2"]).attrs["runs"] == ["seed1", "seed2", "seed3"]
    run("--store", copied, "analyze", "spread")  # memoised, and the latest again
    assert len(store.result("spread").attrs["runs"]) == 3
    assert len(store.results()) == 2
    with pytest.raises(UnknownRun, match=r"no result 'spread' of runs \['seed1'\]"):
        store.result("spread", runs=["seed1"])


def test_a_new_checkpoint_costs_its_own_row_only(
    root: Path, family: Path, tmp_path: Path, probe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from replay import jobs

    asked: list[str] = []
    original = jobs.execute

    def listing(tasks: dict[str, object], **options: object) -> None:
        asked.extend(tasks)
        original(tasks, **options)  # type: ignore[arg-type]

    for name in ("seed1", "seed2"):
        shutil.copytree(family / name, tmp_path / name)
        shutil.move(tmp_path / name / "step8", tmp_path / f"{name}-later")
    paths = tmp_path / "seed1", tmp_path / "seed2"
    ingest(root, *paths, probes=probe_file)
    before = analyze_spread(open_store(root, write=True))
    for name in ("seed1", "seed2"):
        shutil.move(tmp_path / f"{name}-later", tmp_path / name / "step8")
    ingest(root, *paths, probes=probe_file)
    monkeypatch.setattr("replay.analyses.measuring.execute", listing)
    after = analyze_spread(open_store(root, write=True))
    assert sorted(asked) == [f"spread-8-blocks[{n}]:output:mean-0" for n in range(3)]
    assert list(after["step"].values) == [0, 1, 2, 4, 8]
    np.testing.assert_array_equal(after["spread"][:4], before["spread"])


def test_what_is_left_out_is_told_anew_even_when_no_number_changes(copied: Path, family: Path, tmp_path: Path) -> None:
    run("--store", copied, "analyze", "spread")
    assert Store(copied).result("spread").attrs["dropped"] == {}
    shutil.copytree(family / "seed1" / "step8", tmp_path / "seed1" / "step9")
    write_run(tmp_path / "seed1", seed=1, steps=(16,))
    store = open_store(copied, write=True)
    with store.index.write() as session:
        session.connection().exec_driver_sql(
            "UPDATE run SET location = ? WHERE name = 'seed1'", (str(tmp_path / "seed1"),)
        )
    run("--store", copied, "ingest", "--path", tmp_path / "seed1", "--revisions", "all", "--probes", "forty")
    shown = run("--store", copied, "analyze", "spread")
    assert "left out: seed1 step16: another run lacks the step" in shown.stderr
    assert "flagged: seed1 step9: still holds the weights of step8" in shown.stderr
    assert Store(copied).result("spread").attrs["dropped"] == {"seed1": ["step16"]}
    assert len(Store(copied).results()) == 1


@pytest.fixture(scope="module")
def threads_json(replayed: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("threads") / "store"
    shutil.copytree(replayed, root)
    return run("--store", root, "analyze", "spread", "--json").stdout


def test_local_workers_give_the_same_numbers_to_the_last_bit(copied: Path, threads_json: str) -> None:
    assert run("--store", copied, "analyze", "spread", "--workers", "2", "--json").stdout == threads_json
    assert not list((copied / "staging").iterdir())


@pytest.fixture
def scheduler() -> Iterator[str]:
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


def test_an_existing_scheduler_gives_the_same_numbers_to_the_last_bit(
    copied: Path, threads_json: str, scheduler: str
) -> None:
    assert scheduler.startswith("tcp://")
    assert run("--store", copied, "analyze", "spread", "--scheduler", scheduler, "--json").stdout == threads_json


def test_two_analyses_on_one_scheduler_never_share_a_result(replayed: Path, tmp_path: Path, scheduler: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def spread(knn: int, where: Cluster) -> np.ndarray:
        root = tmp_path / f"{knn}{where.scheduler is None}"
        shutil.copytree(replayed, root)
        result = analyze_spread(open_store(root, write=True), gauge=DiffusionGauge(knn=knn), cluster=where)
        values: np.ndarray = result["spread"].values
        return values

    with ThreadPoolExecutor(2) as pool:
        shared = list(pool.map(lambda knn: spread(knn, Cluster(scheduler=scheduler)), (5, 15)))
    for knn, values in zip((5, 15), shared, strict=True):
        np.testing.assert_array_equal(values, spread(knn, Cluster()))


def test_tasks_carry_keys_and_never_arrays(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from replay import jobs

    sizes: list[int] = []
    original = jobs.execute

    def measuring(tasks: dict[str, object], **options: object) -> None:
        sizes.extend(len(pickle.dumps(task)) for task in tasks.values())
        original(tasks, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("replay.analyses.measuring.execute", measuring)
    monkeypatch.setattr("replay.analyses.operators.execute", measuring)
    analyze_spread(open_store(copied, write=True))
    assert len(sizes) == 15  # a task a step and layer
    run("--store", copied, "gauge")
    assert len(sizes) == 15 + 15  # a task a checkpoint
    assert max(sizes) < 4000  # one operator of 40 probes has 6,400 bytes


def test_where_tasks_run_must_make_sense() -> None:
    with pytest.raises(InvalidInput, match="workers is -1"):
        Cluster(workers=-1)
    with pytest.raises(InvalidInput, match="either workers or a scheduler"):
        Cluster(workers=1, scheduler="tcp://127.0.0.1:1")


def test_a_scheduler_that_does_not_answer_is_one_line(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from replay import jobs

    monkeypatch.setattr(jobs, "CONNECT_SECONDS", 0.5)
    with pytest.raises(SourceUnreachable, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        analyze_spread(open_store(copied, write=True), cluster=Cluster(scheduler="tcp://127.0.0.1:9"))


def test_the_table_csv_json_and_plot_say_the_same(copied: Path, tmp_path: Path) -> None:
    table, plot = tmp_path / "s.csv", tmp_path / "s.png"
    shown = run("--store", copied, "analyze", "spread", "--csv", table, "--plot", plot)
    ds = Store(copied).result("spread")
    last = ds.sel(layer="blocks[0]:output:mean", step=8)
    assert f"{float(last['spread_normalized']):.3f} [{float(last['spread_normalized_low']):.3f}, " in shown.stdout
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 15
    row = next(r for r in rows if r["step"] == "8" and r["layer"] == "blocks[0]:output:mean")
    assert float(row["spread"]) == float(last["spread"])
    document = json.loads(run("--store", copied, "analyze", "spread", "--json").stdout)
    assert document["rows"][12]["spread"] == float(last["spread"])
    assert {rate["layer"] for rate in document["rates"]} == set(ds["layer"].values)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "written: " in shown.stderr


def test_activations_that_are_no_numbers_make_a_value_unavailable_and_leave_the_rest(
    root: Path, family: Path, tmp_path: Path, probe_file: Path
) -> None:
    from safetensors.torch import load_file, save_file

    for name in ("seed1", "seed2"):
        shutil.copytree(family / name, tmp_path / name)
    weights = tmp_path / "seed1" / "step2" / "model.safetensors"
    tensors = load_file(weights)
    tensors["gpt_neox.layers.1.mlp.dense_4h_to_h.bias"][0] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    ingest(root, tmp_path / "seed1", tmp_path / "seed2", probes=probe_file)
    shown = run("--store", root, "analyze", "spread", "--include-flagged")
    assert "unavailable: step 2, blocks[1]:output:mean: " in shown.stderr
    ds = Store(root).result("spread")
    missing = ds["spread"].isnull()
    assert list(missing.sel(step=2).values) == [False, True, True]
    assert missing.sum() == 2


def test_a_damaged_store_is_an_error_never_a_number_and_can_be_mended(
    copied: Path, family: Path, probe_file: Path
) -> None:
    good = analyze_spread(open_store(copied, write=True))["spread"].values
    base = ("--store", copied, "analyze", "spread", "--alpha", "0.5")
    view = Store(copied).activations("seed2").encoding["view"]
    shard = next(path for _, path in view.chunks())
    segment = copied / "segments" / shard.relative_to(copied / "segments").parts[0]
    content = shard.read_bytes()
    for harm in (shard.unlink, lambda: shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))):
        harm()
        line = run(*base, code=1).stderr
        assert "run the same commands again" in line
        assert len(line.strip().splitlines()) == 1
        assert len(Store(copied).results()) == 1
    shutil.rmtree(segment)
    for lost in (copied / "segments").glob("*/*"):
        if lost.name == Store(copied).results()["key"][0]:
            shutil.rmtree(lost)
    ingest(copied, *(family / f"seed{seed}" for seed in (1, 2, 3)), probes=probe_file)
    np.testing.assert_array_equal(analyze_spread(open_store(copied, write=True))["spread"].values, good)
    run(*base)


def test_one_run_or_runs_that_cannot_be_compared_are_one_line(copied: Path, tmp_path: Path) -> None:
    store = open_store(copied, write=True)
    with pytest.raises(Unavailable, match=r"spread is the distance between runs and needs two: seed1 is the only one"):
        analyze_spread(store, choice=Choice(runs=["seed1"]))
    with pytest.raises(UnknownRun, match=r"no replayed run 'sed1' in .*; there is seed1"):
        analyze_spread(store, choice=Choice(runs=["sed1"]))
    with pytest.raises(UnknownLayer, match=r"no stored layer 'blocks\[9\]'; there is blocks"):
        analyze_spread(store, choice=Choice(layers=["blocks[9]"]))
    (tmp_path / "other.txt").write_text("".join(f"another {n}\n" for n in range(20)))
    write_run(tmp_path / "stranger", seed=9, steps=(0, 1, 2))
    ingest(copied, tmp_path / "stranger", probes=tmp_path / "other.txt")
    line = run("--store", copied, "analyze", "spread", code=1).stderr
    assert line.startswith("replay: the runs were not all replayed with one probe set at one precision")
    assert "stranger: other (float32)" in line
    assert len(line.strip().splitlines()) == 1
    assert run("--store", copied, "analyze", "spread", "--runs", "seed*").exit_code == 0


def test_an_analysis_never_makes_a_store(tmp_path: Path) -> None:
    line = run("--store", tmp_path / "none", "analyze", "spread", code=1).stderr
    assert (
        line == f"replay: {tmp_path / 'none'} does not exist: name one with --store, or make one with `replay ingest`\n"
    )
    assert not (tmp_path / "none").exists()


def test_an_empty_store_says_what_to_do(root: Path) -> None:
    open_store(root, write=True)
    line = run("--store", root, "analyze", "spread", code=1).stderr
    assert "there is none yet" in line


def test_two_checkpoints_at_one_step_are_never_mixed_and_the_second_is_named(
    root: Path, family: Path, tmp_path: Path, probe_file: Path
) -> None:
    for name in ("a", "b"):
        shutil.copytree(family / ("seed1" if name == "a" else "seed2"), tmp_path / name)
    shutil.copytree(family / "seed3" / "step8", tmp_path / "a" / "checkpoint-8")
    shutil.copytree(family / "seed1" / "step1", tmp_path / "a" / "global_step1")  # the same weights: nothing is lost
    ingest(root, tmp_path / "a", tmp_path / "b", probes=probe_file)
    result = analyze_spread(open_store(root, write=True))
    assert result.attrs["dropped"] == {"a": ["step8"]}
    assert list(result["revision"].sel(run="a").values[[0, -1]]) == ["step0", "checkpoint-8"]


def test_a_layer_that_a_run_lacks_at_some_steps_is_unavailable_with_the_reason(
    root: Path, family: Path, probe_file: Path
) -> None:
    paths = [argument for seed in (1, 2) for argument in ("--path", family / f"seed{seed}")]
    base = ("--store", root, "ingest", "--probes", probe_file)
    run(*base, *paths, "--revisions", "all", "--layers", "blocks[0]")
    run(*base, *paths, "--revisions", "step4,step8", "--layers", "blocks[1]")
    run(*base, "--path", family / "seed1", "--revisions", "step2", "--layers", "blocks[1]")
    result = analyze_spread(open_store(root, write=True))
    missing = result["spread"].isnull().sel(layer="blocks[1]:output:mean")
    assert list(missing.values) == [True, True, True, False, False]
    reasons = {step: reason for step, layer, reason in result.attrs["unavailable"] if step is not None}
    assert reasons[2].startswith("seed2 has this layer not at this step")
    assert reasons[0].startswith("seed1, seed2 has this layer not")
    only = analyze_spread(open_store(root, write=True), choice=Choice(layers=["blocks[1]"]))
    assert list(only["step"].values) == [4, 8]
    assert only.attrs["dropped"]["seed1"] == ["step2"]


def test_the_result_says_how_it_was_made_and_from_what(copied: Path) -> None:
    analyze_spread(open_store(copied, write=True))
    result = Store(copied).result("spread")
    table = Store(copied).revisions("seed2").set_index("revision")
    assert list(result["weights"].sel(run="seed2").values) == list(table["weights"])
    assert list(result["revision"].sel(run="seed2").values) == list(table.index)
    attrs = result.attrs
    assert attrs["probe_set"] == Store(copied).probe_sets()["digest"][0]
    assert (attrs["max_length"], attrs["dtype"]) == (128, "float32")
    assert attrs["n_probes"] == 40
    assert attrs["gauge"]["knn"] == 15
    assert attrs["interval"].startswith("95 % over probes, delete-group jackknife")
    assert attrs["rate_unit"] == "ln(spread) per 1,000 steps"


def flag(root: Path, name: str, *revisions: str) -> Store:
    """Let an audit hold revisions of a run for faulty, and say something of a sound one."""
    store = open_store(root, write=True)
    row = store.runs().set_index("run").loc[name]
    reason = "holds the final weights, those of step8"
    found = [FindingRecord(revision, "final", "fault", f"{revision} {reason}") for revision in revisions]
    run_id = put_run(store, name, source=str(row["source"]), location=str(row["location"]))
    put_findings(store, run_id, "hashes", [*found, FindingRecord("step8", "config", "note", "another config")])
    return store


def test_flagged_revisions_are_left_out_and_named_unless_asked_for(copied: Path) -> None:
    whole = analyze_spread(open_store(copied, write=True))
    assert whole.attrs["flagged"] == {}
    store = flag(copied, "seed2", "step2")
    result = analyze_spread(store)
    assert list(result["step"].values) == [0, 1, 4, 8]
    assert result.attrs["flagged"] == {"seed2": {"step2": "step2 holds the final weights, those of step8"}}
    assert result.attrs["dropped"] == {"seed1": ["step2"], "seed3": ["step2"]}
    np.testing.assert_array_equal(result["spread"], whole["spread"].sel(step=[0, 1, 4, 8]))
    shown = run("--store", copied, "analyze", "spread")
    line = "flagged: seed2 step2: holds the final weights, those of step8; left out (see `replay audit`)\n"
    assert line in shown.stderr
    shown = run("--store", copied, "analyze", "spread", "--include-flagged")
    assert line.replace("left out", "taken in") in shown.stderr
    again = Store(copied).result("spread")
    assert again.attrs["include_flagged"]
    np.testing.assert_array_equal(again["spread"], whole["spread"])
    assert len(Store(copied).results()) == 2


def test_a_sound_revision_takes_the_place_of_a_flagged_one_at_its_step(
    root: Path, family: Path, tmp_path: Path, probe_file: Path
) -> None:
    for name in ("a", "b"):
        shutil.copytree(family / ("seed1" if name == "a" else "seed2"), tmp_path / name)
    shutil.copytree(family / "seed3" / "step8", tmp_path / "a" / "checkpoint-8")
    ingest(root, tmp_path / "a", tmp_path / "b", probes=probe_file)
    first = analyze_spread(open_store(root, write=True))
    assert first.attrs["dropped"] == {"a": ["step8"]}
    result = analyze_spread(flag(root, "a", "checkpoint-8"))
    assert list(result["revision"].sel(run="a").values) == ["step0", "step1", "step2", "step4", "step8"]
    assert result.attrs["dropped"] == {}
    assert (result["spread"].sel(step=8) != first["spread"].sel(step=8)).all()
    assert len(Store(root).results()) == 2


def test_no_other_stage_takes_the_place_of_a_flagged_revision(
    root: Path, family: Path, tmp_path: Path, probe_file: Path
) -> None:
    for name, seed in (("a", "seed1"), ("b", "seed2")):
        for step, stage in (("step1", "stage1-step1"), ("step2", "stage1-step2"), ("step4", "stage2-step1")):
            shutil.copytree(family / seed / step, tmp_path / name / stage)
    ingest(root, tmp_path / "a", tmp_path / "b", probes=probe_file)
    result = analyze_spread(flag(root, "a", "stage1-step1"))
    assert list(result["step"].values) == [2]
    assert list(result["revision"].values.ravel()) == ["stage1-step2"] * 2
    assert result.attrs["dropped"] == {"a": ["stage2-step1"], "b": ["stage1-step1", "stage2-step1"]}


def test_runs_of_which_nothing_sound_is_left_are_one_line(copied: Path) -> None:
    steps = ["step0", "step1", "step2", "step4", "step8"]
    flag(copied, "seed1", *steps)
    line = run("--store", copied, "analyze", "spread", code=1).stderr
    assert line == (
        "replay: nothing of seed1 is sound: revisions left out as flagged: 5 of seed1; "
        "`replay audit` tells why, --include-flagged takes them in\n"
    )
    flag(copied, "seed1", *steps[:3])
    flag(copied, "seed2", *steps[3:])
    line = run("--store", copied, "analyze", "spread", code=1).stderr
    assert "no step is common to all 3 runs" in line
    assert "(revisions left out as flagged: 3 of seed1, 2 of seed2; `replay audit` tells why" in line
    assert len(line.strip().splitlines()) == 1
    assert len(analyze_spread(open_store(copied, write=True), choice=Choice(include_flagged=True))["step"]) == 5
