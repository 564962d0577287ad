"""The store: what is committed is seen whole, once, by every reader, and nothing else is."""

import json
import pickle
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from sqlalchemy import select

from replay.opening import open_store
from store import segments
from store.catalog import Store
from store.commits import (
    LayerArray,
    RevisionRecord,
    commit_activations,
    commit_tokens,
    put_capture,
    put_probe_set,
    put_run,
    stage_activations,
)
from store.errors import (
    InvalidInput,
    InvalidProbes,
    NotAStore,
    StoreDamaged,
    StoreNotWritable,
    StoreTooNew,
    UnknownLayer,
    UnknownRun,
)
from store.exports import export_zarr
from store.keys import replay_key
from store.names import match_layers
from store.schema import APPLICATION_ID, SCHEMA_VERSION, Segment
from store.segments import segment_path, sweep, verify

N_PROBES, WIDTH = 20, 6
TOKEN_IDS = [[7] * (1 + i % 4) for i in range(N_PROBES)]
N_TOKENS = sum(map(len, TOKEN_IDS))


class Filling:
    """A store being filled with known numbers."""

    def __init__(self, root: Path) -> None:
        self.store = open_store(root, write=True)
        rows: list[tuple[str, str | None, str | None]] = [(f"text {i}", "ab"[i % 2], None) for i in range(N_PROBES)]
        put_probe_set(self.store, "p", digest="d" * 64, probes=rows)
        self.capture = put_capture(self.store, probe_set="d" * 64, max_length=128, dtype="float32")
        self.tokens = commit_tokens(self.store, tokenizer="t", capture=self.capture, token_ids=TOKEN_IDS)

    def run(self, name: str, steps: dict[str, int | None], *, weights: dict[str, str] | None = None) -> None:
        digests = weights or {}
        records = [
            RevisionRecord(revision, commit="c", step=step, weights=digests.get(revision, revision), tokenizer="t")
            for revision, step in steps.items()
        ]
        put_run(self.store, name, source="hub", location=name, records=records)

    def replay(self, weights: str, layers: list[LayerArray]) -> None:
        identity: dict[str, Any] = {"weights": weights, "tokens": self.tokens, "dtype": "float32"}
        key = replay_key(**identity)
        assert self.store.index.claim(key)
        staged = stage_activations(self.store.root, layers=layers, attrs={}, **identity)
        assert commit_activations(self.store, staged, layers=[layer.row for layer in layers], claim=key, **identity)
        self.store.index.release(key)


def values(weights: str, layer: int, *, rows: int = N_PROBES, width: int = WIDTH) -> np.ndarray:
    rng = np.random.default_rng([layer, *weights.encode()])
    return rng.normal(size=(rows, width)).astype(np.float32)


def block(weights: str, number: int) -> LayerArray:
    return LayerArray(f"blocks[{number}]:output:mean", f"layers.{number}", "probe", values(weights, number))


@pytest.fixture
def filling(root: Path) -> Filling:
    return Filling(root)


def test_a_run_reads_back_sorted_by_step_whatever_the_order_of_arrival(filling: Filling) -> None:
    filling.run("r", {"step10": 10, "step9": 9, "step100": 100})
    for weights in ("step100", "step9", "step10"):
        filling.replay(weights, [block(weights, n) for n in range(3)])
    ds = Store(filling.store.root).activations("r")
    assert list(ds["revision"].values) == ["step9", "step10", "step100"]
    assert list(ds["step"].values) == [9, 10, 100]
    assert ds["activations"].dims == ("revision", "layer", "probe", "feature")
    for i, weights in enumerate(("step9", "step10", "step100")):
        for n in range(3):
            np.testing.assert_array_equal(ds["activations"][i, n].values, values(weights, n))


def test_the_dataset_carries_texts_labels_and_where_it_came_from(filling: Filling) -> None:
    filling.run("r", {"step0": 0})
    filling.replay("step0", [block("step0", 0)])
    ds = filling.store.activations("r")
    assert ds["text"].values[3] == "text 3"
    assert list(ds["label"].values[:2]) == ["a", "b"]
    assert ds["module"].values[0] == "layers.0"
    assert ds["commit"].values[0] == "c"
    assert ds["weights"].values[0] == "step0"
    assert ds.attrs["probe_set"] == "d" * 64


def test_revisions_with_equal_weights_share_a_segment_and_are_all_listed(filling: Filling) -> None:
    filling.run("r", {"step0": 0, "step1": 1, "main": None}, weights={"main": "step1"})
    filling.replay("step0", [block("step0", 0)])
    filling.replay("step1", [block("step1", 0)])
    ds = filling.store.activations("r")
    assert list(ds["revision"].values) == ["step0", "step1", "main"]
    assert list(ds["alias_of"].values) == ["", "", "step1"]
    assert np.isnan(ds["step"].values[2])
    np.testing.assert_array_equal(ds["activations"][1].values, ds["activations"][2].values)
    assert list(filling.store.revisions("r")["state"]) == ["done", "done", "alias"]
    assert len(list((filling.store.root / "segments").glob("*/*"))) == 3  # two checkpoints and the token ids


def test_two_runs_with_equal_weights_share_a_replay(filling: Filling) -> None:
    filling.run("a", {"main": None}, weights={"main": "same"})
    filling.run("b", {"final": 5}, weights={"final": "same"})
    filling.replay("same", [block("same", 0)])
    a, b = (filling.store.activations(run)["activations"].values for run in "ab")
    np.testing.assert_array_equal(a, b)


def test_layers_added_later_join_along_the_layer_axis_and_gaps_read_as_nan(filling: Filling) -> None:
    filling.run("r", {"step0": 0, "step1": 1})
    filling.replay("step0", [block("step0", 2), block("step0", 10)])
    filling.replay("step1", [block("step1", 2)])
    filling.replay("step0", [block("step0", 0)])
    ds = filling.store.activations("r")
    assert list(ds["layer"].values) == [f"blocks[{n}]:output:mean" for n in (0, 2, 10)]
    np.testing.assert_array_equal(ds["activations"][0, 0].values, values("step0", 0))
    np.testing.assert_array_equal(ds["activations"][0, 2].values, values("step0", 10))
    assert np.isnan(ds["activations"][1, 0].values).all()
    np.testing.assert_array_equal(ds["activations"][1, 1].values, values("step1", 2))


def test_layers_of_other_widths_and_token_level_ones_stand_beside(filling: Filling) -> None:
    filling.run("r", {"step0": 0})
    wide = LayerArray("blocks[0].mlp.up:output:mean", "layers.0.mlp.up", "probe", values("w", 0, width=9))
    tokens = LayerArray("embed:output:all", "embed_in", "token", values("t", 0, rows=N_TOKENS))
    filling.replay("step0", [block("step0", 0), block("step0", 1), wide, tokens])
    ds = filling.store.activations("r")
    assert ds["activations"].sizes == {"revision": 1, "layer": 2, "probe": N_PROBES, "feature": WIDTH}
    np.testing.assert_array_equal(ds["activations_9"][0, 0].values, wide.values)
    np.testing.assert_array_equal(ds["activations_token"][0, 0].values, tokens.values)
    assert list(ds["token_probe"].values[:4]) == [0, 1, 1, 2]
    assert list(ds["token_position"].values[:4]) == [0, 0, 1, 0]
    assert set(ds["token_id"].values) == {7}


def test_layers_are_chosen_by_name_glob_and_from_the_end() -> None:
    there = {f"blocks[{n}]:output:mean" for n in range(12)} | {"blocks[3]:output:cls", "embed:output:mean"}
    assert match_layers("blocks[-1]:output:mean", there, n_blocks=12) == {"blocks[11]:output:mean"}
    with pytest.raises(UnknownLayer, match=r"no stored layer 'blocks\[-1\]'"):
        match_layers("blocks[-1]", there, n_blocks=24)  # not the last one stored, but the last one
    with pytest.raises(UnknownLayer, match="needs one number of blocks for all, and there is none: name the block"):
        match_layers("blocks[-1]", there)
    assert match_layers("blocks[1]", there) == {"blocks[1]:output:mean"}
    assert match_layers("blocks[3]:*", there) == {"blocks[3]:output:mean", "blocks[3]:output:cls"}
    assert len(match_layers("blocks[*]", there)) == 12
    with pytest.raises(UnknownLayer, match=r"no stored layer 'blocks\[30\]'; there is blocks\[3\]:output"):
        match_layers("blocks[30]", there)


def test_xarray_opens_the_store_by_engine_and_as_a_tree(filling: Filling) -> None:
    filling.run("org/a", {"step0": 0})
    filling.run("org/b", {"step0": 0}, weights={"step0": "other"})
    filling.replay("step0", [block("step0", 0)])
    filling.replay("other", [block("other", 0)])
    one = xr.open_dataset(filling.store.root, engine="replay", run="org/b")
    np.testing.assert_array_equal(one["activations"][0, 0].values, values("other", 0))
    tree = xr.open_datatree(filling.store.root, engine="replay")
    np.testing.assert_array_equal(np.asarray(tree["org/a/activations"])[0, 0], values("step0", 0))
    with pytest.raises(InvalidInput, match="has 2 runs: open one with run="):
        xr.open_dataset(filling.store.root, engine="replay")
    assert "text" not in xr.open_dataset(filling.store.root, engine="replay", run="org/a", drop_variables="text")


def test_dask_blocks_are_whole_shards_and_give_the_same_numbers(filling: Filling) -> None:
    filling.run("r", {"step0": 0, "step1": 1})
    for weights in ("step0", "step1"):
        filling.replay(weights, [block(weights, n) for n in range(2)])
    ds = xr.open_dataset(filling.store.root, engine="replay", chunks={})
    assert ds["activations"].chunks == ((1, 1), (1, 1), (N_PROBES,), (WIDTH,))
    plain = xr.open_dataset(filling.store.root, engine="replay")["activations"].values
    np.testing.assert_array_equal(ds["activations"].compute(scheduler="threads").values, plain)


def test_a_view_pickles_small_and_reads_without_the_index(filling: Filling) -> None:
    filling.run("r", {f"step{n}": n for n in range(30)})
    for n in range(30):
        filling.replay(f"step{n}", [block(f"step{n}", 0)])
    content = pickle.dumps(filling.store.view("r"))
    assert len(content) < 10_000
    (filling.store.root / "index.sqlite").unlink()
    array = zarr.open_array(pickle.loads(content), path="activations", mode="r")
    np.testing.assert_array_equal(array[7, 0], values("step7", 0))


def test_selecting_one_revision_and_layer_reads_one_shard(filling: Filling, monkeypatch: pytest.MonkeyPatch) -> None:
    from store import views

    filling.run("r", {f"step{n}": n for n in range(4)})
    for n in range(4):
        filling.replay(f"step{n}", [block(f"step{n}", layer) for layer in range(3)])
    read: set[Path] = set()
    original = views._read

    def noting(path: Path, byte_range: object) -> bytes:
        read.add(path)
        return original(path, byte_range)  # type: ignore[arg-type]

    monkeypatch.setattr(views, "_read", noting)
    ds = filling.store.activations("r")
    assert not read
    ds["activations"].isel(revision=2, layer=1).load()
    assert len(read) == 1


def test_plain_xarray_opens_any_single_segment(filling: Filling) -> None:
    filling.run("r", {"step0": 0})
    filling.replay("step0", [block("step0", 0), block("step0", 1)])
    for path in (filling.store.root / "segments").glob("*/*"):
        ds = xr.open_zarr(path, consolidated=False)
        assert set(ds.data_vars) & {"activations", "token_id"}
        if "activations" in ds:
            np.testing.assert_array_equal(ds["activations"][0, 1].values, values("step0", 1))
            assert ds.attrs["layers"] == {"activations": ["blocks[0]:output:mean", "blocks[1]:output:mean"]}


def test_an_export_is_plain_zarr_that_outlives_the_store(filling: Filling, tmp_path: Path) -> None:
    filling.run("org/r", {"step0": 0, "step1": 1, "main": None}, weights={"main": "step1"})
    for weights in ("step0", "step1"):
        filling.replay(weights, [block(weights, n) for n in range(2)])
    before = filling.store.activations("org/r")
    expected = before["activations"].values
    exported = export_zarr(filling.store, "org/r", tmp_path / "out" / "r.zarr")
    assert exported.n_linked > 0
    shutil.rmtree(filling.store.root)
    ds = xr.open_zarr(tmp_path / "out" / "r.zarr")
    np.testing.assert_array_equal(ds["activations"].values, expected)
    np.testing.assert_array_equal(ds["step"].values, [0, 1, np.nan])
    assert list(ds["revision"].values) == ["step0", "step1", "main"]
    assert list(ds["layer"].values) == ["blocks[0]:output:mean", "blocks[1]:output:mean"]
    assert ds["text"].values[2] == "text 2"
    with pytest.raises(InvalidInput, match="exists already"):
        export_zarr(filling.store, "org/r", tmp_path / "out" / "r.zarr")


def test_the_same_content_gives_the_same_bytes_under_the_same_name(tmp_path: Path) -> None:
    trees = []
    for name in ("one", "two"):
        filling = Filling(tmp_path / name)
        filling.run("r", {"step0": 0})
        filling.replay("step0", [block("step0", n) for n in range(3)])
        folder = filling.store.root / "segments"
        trees.append({p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    assert trees[0] == trees[1]


def test_a_segment_left_by_a_killed_writer_is_adopted_or_replaced(filling: Filling) -> None:
    filling.run("r", {"step0": 0})
    filling.replay("step0", [block("step0", 0)])
    with filling.store.index.read() as session:
        row = session.scalars(select(Segment).where(Segment.kind == "activations")).one()
    path = segment_path(filling.store.root, row.id)
    kept = path.with_name("kept")
    shutil.copytree(path, kept)
    for damage in (False, True):
        with closing(sqlite3.connect(filling.store.root / "index.sqlite")) as connection:
            connection.executescript(f"DELETE FROM activation; DELETE FROM segment WHERE id = '{row.id}';")
        if damage:
            next(p for p in path.rglob("c/0/0/0/0")).write_bytes(b"torn")
        filling.replay("step0", [block("step0", 0)])
        verify(filling.store.root, row.id, row.files)
        np.testing.assert_array_equal(filling.store.activations("r")["activations"][0, 0].values, values("step0", 0))


def test_a_writer_that_lost_its_claim_commits_nothing(filling: Filling) -> None:
    filling.run("r", {"step0": 0})
    layers = [block("step0", 0)]
    identity: dict[str, Any] = {"weights": "step0", "tokens": filling.tokens, "dtype": "float32"}
    staged = stage_activations(filling.store.root, layers=layers, attrs={}, **identity)
    assert not commit_activations(
        filling.store, staged, layers=[layer.row for layer in layers], claim="nobody's", **identity
    )
    assert not list((filling.store.root / "staging").iterdir())
    assert list(filling.store.revisions("r")["state"]) == ["listed"]


def test_room_is_reserved_for_claims_until_they_are_released(filling: Filling) -> None:
    index = filling.store.index
    assert index.claim("one")
    assert index.claim("two")
    assert index.claimed() == {"one": 0, "two": 0}
    assert index.reserve("one", 60, budget=100)
    assert not index.reserve("two", 41, budget=100)
    assert not index.reserve("two", 40, budget=100, stray=1)
    assert index.reserve("two", 40, budget=100)
    assert index.reserve("one", 50, budget=100)  # its own former room is not in its way
    assert not index.reserve("one", 61, budget=100)
    index.release("two")
    assert index.reserve("one", 100, budget=100)
    index.release("one")
    assert index.claimed() == {}


def test_a_dead_process_holds_no_room(filling: Filling) -> None:
    program = f"""
from replay.opening import open_store
index = open_store({str(filling.store.root)!r}, write=True).index
assert index.claim("dead") and index.reserve("dead", 90, budget=100)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    index = filling.store.index
    assert index.claimed() == {}
    assert index.claim("mine")
    assert index.reserve("mine", 100, budget=100)
    index.release("mine")


def test_a_claim_of_a_living_process_is_respected_and_a_dead_one_taken_over(filling: Filling) -> None:
    program = f"""
import sys, time
from replay.opening import open_store
assert open_store({str(filling.store.root)!r}, write=True).index.claim("work")
print("claimed", flush=True)
time.sleep(60)
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "claimed\n"
    assert not filling.store.index.claim("work")
    child.kill()
    child.wait()
    child.stdout.close()
    assert filling.store.index.claim("work")
    filling.store.index.release("work")


def test_a_lost_or_altered_file_is_an_error_and_never_a_number(filling: Filling) -> None:
    filling.run("r", {"step0": 0, "step1": 1})
    for weights in ("step0", "step1"):
        filling.replay(weights, [block(weights, 0)])
    ds = filling.store.activations("r")
    shards = [path for _, path in ds.encoding["view"].chunks()]
    content = bytearray(shards[0].read_bytes())
    content[20] ^= 1
    shards[0].write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        ds["activations"][0].load()
    shards[1].unlink()
    with pytest.raises(StoreDamaged, match="is gone although the index names it"):
        ds["activations"][1].load()
    with filling.store.index.read() as session:
        rows = session.scalars(select(Segment).where(Segment.kind == "activations")).all()
    for row in rows:
        with pytest.raises(StoreDamaged, match="missing or altered"):
            verify(filling.store.root, row.id, row.files)


def test_a_layer_of_several_shards_is_read_as_zarr_reads_it(filling: Filling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SHARD_BYTES", 2 * 256 * WIDTH * 4)
    X = [values("step0", number, rows=1300) for number in range(2)]
    arrays = {"a": segments.Array(X, ("revision", "layer", "probe", "feature"), stacked=True)}
    staged = segments.stage(filling.store.root, "5e6", kind="activations", arrays=arrays, attrs={})
    segments.publish(filling.store.root, staged)
    stored = zarr.open_array(str(segment_path(filling.store.root, "5e6") / "a"), mode="r")
    assert stored.shards == (1, 1, 512, WIDTH)
    for number in range(2):
        read = segments.read_slice(filling.store.root, "5e6", "a", number)
        np.testing.assert_array_equal(read, X[number])
        np.testing.assert_array_equal(read, stored[0, number])


def test_a_layer_that_is_altered_anywhere_is_not_read(filling: Filling) -> None:
    arrays = {"a": segments.Array([values("step0", 0)], ("revision", "layer", "probe", "feature"), stacked=True)}
    segments.publish(
        filling.store.root,
        segments.stage(filling.store.root, "5e6", kind="activations", arrays=arrays, attrs={}),
    )
    shard = segment_path(filling.store.root, "5e6") / "a" / "c" / "0" / "0" / "0" / "0"
    content = shard.read_bytes()
    for place in range(len(content)):
        shard.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(StoreDamaged, match=r"cannot be read .* run the same commands again"):
            segments.read_slice(filling.store.root, "5e6", "a", 0)
    for length in (0, 3, len(content) - 1):
        shard.write_bytes(content[:length])
        with pytest.raises(StoreDamaged, match="cannot be read"):
            segments.read_slice(filling.store.root, "5e6", "a", 0)
    shard.unlink()
    with pytest.raises(StoreDamaged, match="is gone: remove"):
        segments.read_slice(filling.store.root, "5e6", "a", 0)


def test_staging_of_a_dead_process_is_swept_and_of_a_living_one_kept(filling: Filling) -> None:
    import os
    import socket

    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    dead = filling.store.root / "staging" / f"{socket.gethostname()}.{gone.stdout.strip()}.abc"
    alive = filling.store.root / "staging" / f"{socket.gethostname()}.{os.getpid()}.abc"
    elsewhere = filling.store.root / "staging" / "another-host.7.abc"
    for folder in (dead, alive, elsewhere):
        folder.mkdir()
    assert sweep(filling.store.root) == 1
    assert sorted(p.name for p in (filling.store.root / "staging").iterdir()) == sorted([alive.name, elsewhere.name])


def test_a_probe_set_that_a_run_has_used_never_changes(filling: Filling) -> None:
    assert not filling.store.probe_sets()["used"].any()
    filling.run("r", {"step0": 0})
    filling.replay("step0", [block("step0", 0)])
    assert filling.store.probe_sets()["used"].all()
    with pytest.raises(InvalidProbes, match="already has other probes named 'p' and a run has used them"):
        put_probe_set(filling.store, "p", digest="e" * 64, probes=[("x", None, None)])
    assert put_probe_set(filling.store, "q", digest="e" * 64, probes=[("x", None, None)])
    assert not put_probe_set(filling.store, "q", digest="e" * 64, probes=[("x", None, None)])
    assert put_probe_set(filling.store, "q", digest="f" * 64, probes=[("y", None, None)])  # not used yet
    assert list(filling.store.probes("q")["text"]) == ["y"]
    with pytest.raises(InvalidProbes, match="these very probes under the name 'q'"):
        put_probe_set(filling.store, "z", digest="f" * 64, probes=[("y", None, None)])


def test_unknown_names_are_answered_with_the_nearest_ones(filling: Filling) -> None:
    filling.run("org/pythia-seed1", {"step0": 0})
    with pytest.raises(UnknownRun, match=r"no run 'org/pythia-seed2' in .*; there is org/pythia-seed1"):
        filling.store.activations("org/pythia-seed2")
    with pytest.raises(UnknownRun, match="was not replayed with probes of any kind; it has nothing yet"):
        filling.store.activations("org/pythia-seed1")
    with pytest.raises(UnknownRun, match="no result 'spread': `replay analyze spread` computes one"):
        filling.store.result("spread")
    with pytest.raises(UnknownRun, match="no probe set 'q'"):
        filling.store.probes("q")


def test_folders_that_are_no_store_are_refused_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(NotAStore, match="does not exist"):
        open_store(tmp_path / "none")
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.jpg").write_bytes(b"cat")
    for write in (False, True):
        with pytest.raises(NotAStore, match="is not a replay store"):
            open_store(folder, write=write)
    assert [p.name for p in folder.iterdir()] == ["cat.jpg"]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    with closing(sqlite3.connect(foreign / "index.sqlite")) as connection:
        connection.execute("CREATE TABLE notes (text)")
    content = (foreign / "index.sqlite").read_bytes()
    for write in (False, True):
        with pytest.raises(NotAStore, match="belongs to another program"):
            open_store(foreign, write=write)
    assert (foreign / "index.sqlite").read_bytes() == content
    (foreign / "index.sqlite").write_bytes(b"no database at all, but long enough to look like one" * 40)
    for write in (False, True):
        with pytest.raises(NotAStore, match="no SQLite file"):
            open_store(foreign, write=write)


def test_a_store_of_a_newer_version_is_refused_and_left_alone(filling: Filling) -> None:
    database = filling.store.root / "index.sqlite"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    for write in (False, True):
        with pytest.raises(StoreTooNew, match="written by a newer replay"):
            open_store(filling.store.root, write=write)
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION + 1


def test_a_read_only_store_refuses_to_be_written(filling: Filling) -> None:
    with pytest.raises(StoreNotWritable, match="opened read-only"):
        put_run(Store(filling.store.root), "r", source="hub", location="r")


def test_the_safety_pragmas_took_effect(filling: Filling) -> None:
    with filling.store.index.write() as session:
        connection = session.connection()
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "application_id")
        }
    assert found == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": 30000,
        "application_id": APPLICATION_ID,
    }


def test_metadata_names_dimensions_codecs_and_a_fill_value_that_is_no_number(filling: Filling) -> None:
    filling.run("r", {"step0": 0})
    filling.replay("step0", [block("step0", 0)])
    document = next((filling.store.root / "segments").rglob("activations/zarr.json")).read_text()
    metadata = json.loads(document)
    assert metadata["fill_value"] == "NaN"
    assert metadata["dimension_names"] == ["revision", "layer", "probe", "feature"]
    inner = metadata["codecs"][0]["configuration"]["codecs"]
    assert [codec["name"] for codec in inner] == ["bytes", "blosc", "crc32c"]
