"""Norms and distances of the weights of a run equal those of the files themselves."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file
from test_ingest import run

from replay.movement import weight_movement
from replay.opening import open_store
from store.errors import Unavailable


def test_the_table_holds_norms_and_distances_of_the_files(
    root: Path, family: Path, probe_file: Path, tmp_path: Path
) -> None:
    base = ("--store", root, "ingest", "--path", family / "seed1", "--revisions", "all", "--probes", probe_file)
    run(*base, "--layers", "blocks[0]")
    run("--store", root, "audit", "--csv", tmp_path / "weights.csv")
    table = pd.read_csv(tmp_path / "weights.csv")
    assert list(dict.fromkeys(table["revision"])) == ["step0", "step1", "step2", "step4", "step8"]
    files = {name: load_file(family / "seed1" / name / "model.safetensors") for name in table["revision"].unique()}
    for group in table["group"].unique():
        names = [name for name in files["step0"] if name.startswith(f"{group}.")]
        flat = {step: np.concatenate([files[step][name].double().numpy().ravel() for name in names]) for step in files}
        rows = table[table["group"] == group].set_index("revision")
        for before, after in (("step0", "step1"), ("step4", "step8")):
            true = np.linalg.norm(flat[after] - flat[before])
            np.testing.assert_allclose(rows.loc[after, "to_previous"], true, rtol=0.05)
            np.testing.assert_allclose(rows.loc[before, "to_next"], true, rtol=0.05)
        np.testing.assert_allclose(rows.loc["step2", "norm"], np.linalg.norm(flat["step2"]), rtol=1e-6)
        np.testing.assert_allclose(
            rows.loc["step1", "to_final"], np.linalg.norm(flat["step8"] - flat["step1"]), rtol=0.05
        )
        assert np.isnan(rows.loc["step0", "to_previous"])
        assert rows.loc["step8", "to_final"] == 0


def test_weights_that_nobody_has_looked_at_are_said_to_be_unknown(root: Path, family: Path, tmp_path: Path) -> None:
    run("--store", root, "audit", "--path", family / "seed1")
    with pytest.raises(Unavailable, match="the weights of seed1 were not looked at yet"):
        weight_movement(open_store(root), "seed1")
    refused = run("--store", root, "audit", "--csv", tmp_path / "weights.csv", code=1)
    assert "were not looked at yet" in refused.stderr
    assert not (tmp_path / "weights.csv").exists()
