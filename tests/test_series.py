"""Series: whatever the store knows over training, at the training steps each run has, in one shape."""

from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select
from synthetic import histories, write_store

from replay.analyses.path import analyze_path
from replay.analyses.selection import Choice
from replay.analyses.series import read_series, series_names
from replay.analyses.spectrum import analyze_spectrum
from replay.analyses.spread import analyze_spread
from store.catalog import Store
from store.commits import FindingRecord, RevisionRecord, put_findings, put_run
from store.errors import InvalidInput, Unavailable, UnknownRun
from store.schema import Run

STEPS = [0, 100, 200, 300, 400]
LAYERS = ["blocks[0]:output:mean", "blocks[1]:output:mean"]


@pytest.fixture
def store(root: Path) -> Store:
    """A store of two runs with two layers; the second one lacks step 200."""
    made = histories(runs=2)
    del made["run1"][200]
    return write_store(root, made)


def log_loss(store: Store, run: str, losses: dict[int, float]) -> None:
    records = [
        RevisionRecord(f"step{step}", step=step, weights=f"{run}-{step}", tokenizer="t", scalars={"loss": loss})
        for step, loss in losses.items()
    ]
    put_run(store, run, source="folder", location=run, records=records)


def flag(store: Store, run: str, revision: str) -> None:
    with store.index.read() as session:
        number = session.scalars(select(Run.id).where(Run.name == run)).one()
    put_findings(store, number, "hashes", [FindingRecord(revision, "copy", "fault", f"{revision} is another's copy")])


def test_a_dimension_is_that_of_the_activations_at_the_steps_of_its_run(store: Store) -> None:
    found = read_series(store, ["participation_ratio"])
    assert [(one.metric, one.run, one.layer) for one in found] == [
        ("participation_ratio", run, layer) for run in ("run0", "run1") for layer in LAYERS
    ]
    assert found[1].steps.tolist() == STEPS
    assert found[3].steps.tolist() == [0, 100, 300, 400]
    for one in found:
        for step, value in zip(one.steps, one.values, strict=True):
            X = histories(runs=2)[one.run][int(step)][one.layer.partition(":")[0]].astype(float)
            powers = np.linalg.svd(X - X.mean(axis=0), compute_uv=False) ** 2
            assert value == pytest.approx(powers.sum() ** 2 / (powers**2).sum(), rel=1e-6)
        assert one.error is not None
        assert (one.error > 0).all()


def test_each_family_gives_the_numbers_of_its_analysis_with_half_its_interval_for_the_error(store: Store) -> None:
    choice = Choice(runs=["run0"])
    names = ["spectral_gap", "velocity"]
    gap, speed = read_series(store, names, choice=Choice(runs=["run0"], layers=["blocks[1]"]))
    spectra = analyze_spectrum(store, choice=choice).sel(run="run0", layer=LAYERS[1])
    np.testing.assert_array_equal(gap.values, spectra["spectral_gap"])
    width = (spectra["spectral_gap_high"] - spectra["spectral_gap_low"]).to_numpy()
    np.testing.assert_allclose(np.asarray(gap.error), width / 3.92, rtol=1e-4)
    path = analyze_path(store, choice=choice).sel(run="run0", layer=LAYERS[1])
    np.testing.assert_array_equal(speed.values, path["velocity"])
    assert np.isnan(speed.values[0])  # nothing comes before the first checkpoint


def test_a_spread_belongs_to_no_run_and_needs_two(store: Store) -> None:
    found = read_series(store, ["spread"])
    assert [(one.run, one.layer) for one in found] == [("", layer) for layer in LAYERS]
    assert found[0].steps.tolist() == [0, 100, 300, 400]  # those that both runs have
    np.testing.assert_array_equal(found[0].values, analyze_spread(store)["spread"].sel(layer=LAYERS[0]))
    with pytest.raises(Unavailable, match="needs two"):
        read_series(store, ["spread"], choice=Choice(runs=["run0"]))


def test_scalars_of_training_are_series_without_a_layer_and_those_of_faulty_revisions_are_left_out(
    store: Store,
) -> None:
    log_loss(store, "run0", {0: 7.0, 400: 3.0, 100: 5.0, 200: float("inf"), 300: 9.0})
    flag(store, "run0", "step300")
    assert "loss" in series_names(store)
    assert "loss" not in series_names(store, choice=Choice(runs=["run1"]))
    (loss,) = read_series(store, ["loss"])
    assert (loss.run, loss.layer, loss.error) == ("run0", "", None)
    assert loss.steps.tolist() == [0, 100, 200, 400]
    np.testing.assert_array_equal(loss.values, [7, 5, np.nan, 3])
    (whole,) = read_series(store, ["loss"], choice=Choice(include_flagged=True))
    assert whole.steps.tolist() == STEPS


def test_a_step_has_the_scalars_of_the_first_revision_with_some_and_is_never_taken_over_by_another_stage(
    store: Store,
) -> None:
    logged = [
        ("stage1-step100-tokens1B", 1, {}),
        ("stage1-step100-tokens2B", 1, {"loss": 5.0}),
        ("stage1-step200-tokens1B", 1, {"loss": 4.0}),
        ("stage2-step200-tokens1B", 2, {"loss": 99.0}),
        ("stage2-step500-tokens1B", 2, {"loss": 2.0}),
    ]
    records = [
        RevisionRecord(name, step=int(name.split("-")[1][4:]), stage=stage, scalars=scalars)
        for name, stage, scalars in logged
    ]
    put_run(store, "run0", source="folder", location="run0", records=records)
    flag(store, "run0", "stage1-step200-tokens1B")
    (loss,) = read_series(store, ["loss"], choice=Choice(runs=["run0"]))
    assert dict(zip(loss.steps, loss.values, strict=True)) == {100: 5.0, 500: 2.0}
    (whole,) = read_series(store, ["loss"], choice=Choice(runs=["run0"], include_flagged=True))
    assert dict(zip(whole.steps, whole.values, strict=True)) == {100: 5.0, 200: 4.0, 500: 2.0}


def test_series_come_in_the_order_they_are_asked_for_and_once(store: Store) -> None:
    log_loss(store, "run0", dict.fromkeys(STEPS, 1.0))
    found = read_series(store, ["loss", "stable_rank", "loss"], choice=Choice(runs=["run0"], layers=["blocks[0]"]))
    assert [one.name for one in found] == ["run0 loss", f"run0 {LAYERS[0]} stable_rank"]


def test_a_wrong_name_is_told_with_the_nearest_first_and_all_others(store: Store) -> None:
    with pytest.raises(InvalidInput, match="no series 'spectral_gp' over training; there is spectral_gap,") as error:
        read_series(store, ["spectral_gp"])
    assert all(name in str(error.value) for name in series_names())
    with pytest.raises(InvalidInput, match="no metric is named"):
        read_series(store, [])
    with pytest.raises(UnknownRun, match="no replayed run 'run7'"):
        read_series(store, ["stable_rank"], choice=Choice(runs=["run7"]))
