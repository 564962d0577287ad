"""Stores that older versions wrote open for ever, with the numbers they were written with.

Each folder ``data/store-vN`` was written by format N: two runs of three checkpoints of a small GPT-NeoX, eight probes,
one pooled and one token-level layer, operators and a spread, from format 2 on the statistics of the weights, from
format 3 on single measurements; ``store-vN.json`` has some of its values.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from sqlalchemy import select

from replay.opening import open_store
from store.schema import SCHEMA_VERSION, Measurement, Segment
from store.segments import verify

DATA = Path(__file__).parent / "data"
VERSIONS = sorted(int(path.name.removeprefix("store-v")) for path in DATA.glob("store-v*") if path.is_dir())


def test_every_format_up_to_this_one_is_kept() -> None:
    assert list(range(1, SCHEMA_VERSION + 1)) == VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
def test_an_old_store_opens_with_its_numbers(version: int, tmp_path: Path) -> None:
    root = tmp_path / "store"
    shutil.copytree(DATA / f"store-v{version}", root)
    expected = json.loads((DATA / f"store-v{version}.json").read_text())
    store = open_store(root, write=True)
    ds = xr.open_dataset(root, engine="replay", run="seed1")
    assert float(ds["activations"][1, 0, 2, 3]) == expected["activation"]
    assert float(ds["activations_token"][2, 0, 5, 1]) == expected["token_activation"]
    assert list(ds["token_id"].values[:4]) == expected["token_id"]
    assert float(store.operators("seed2")["operator"][0, 0, 1, 2]) == expected["operator"]
    np.testing.assert_array_equal(store.result("spread")["spread"][:, 0], expected["spread"])
    assert list(ds["step"].values) == [0, 1, 2]
    weights = store.revisions("seed1")["weights"]
    norms = [float(weighing["norm"][0]) for weighing in store.weighings([weights[1]]).values()]
    assert norms == ([expected["norm"]] if version >= 2 else [])
    with store.index.read() as session:
        measured = session.scalars(select(Measurement.numbers)).all()
    assert len(measured) == (3 if version >= 3 else 0)  # a pair of runs at three steps
    assert all(np.isfinite(np.frombuffer(numbers, "<f8")).all() for numbers in measured)
    assert list(store.findings("seed1").columns) == ["revision", "step", "kind", "level", "basis", "others", "text"]
    with store.index.read() as session:
        for row in session.scalars(select(Segment)):
            verify(root, row.id, row.files)
