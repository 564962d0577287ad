"""Measurements of points and pairs: kept one by one, computed only where missing, within a memory figure."""

import shutil
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from test_analysis import run

from replay.analyses.measuring import _tiles, measure_pairs, measure_points
from replay.analyses.selection import Choice, Slice, choose_steps, select_layers
from replay.jobs import Cluster
from replay.opening import open_store
from store.catalog import Store
from store.errors import InvalidInput
from store.measurements import get_measurements, point_ids, put_measurements
from store.segments import read_slice

RECIPE = {"what": "tests", "version": 1}


@pytest.fixture
def store(replayed: Path, root: Path) -> Store:
    shutil.copytree(replayed, root)
    return open_store(root, write=True)


def slices_of(store: Store, run: str = "seed1", layer: str = "blocks[2]:output:mean") -> list[Slice]:
    history = select_layers(store, Choice(runs=(run,))).histories[run]
    return [history.slices[step, layer] for step in history.steps([layer])]


def norms(root: Path, slices: Sequence[Slice]) -> list[np.ndarray | str]:
    return [np.array([np.linalg.norm(read_slice(root, s.segment, s.array, s.position))]) for s in slices]


def distances(root: Path, slices: Sequence[Slice], pairs: Sequence[tuple[int, int]]) -> list[np.ndarray | str]:
    X = [read_slice(root, s.segment, s.array, s.position).astype(np.float64) for s in slices]
    return [np.array([np.linalg.norm(X[i] - X[j])]) for i, j in pairs]


def refuse(root: Path, slices: Sequence[Slice], pairs: Sequence[tuple[int, int]]) -> list[np.ndarray | str]:
    raise AssertionError(f"nothing was missing, and {len(pairs)} pairs are computed")


def test_numbers_and_reasons_come_back_as_they_were_put(store: Store) -> None:
    one, other, _, _, _ = point_ids(store, [piece.point for piece in slices_of(store)]).values()
    put_measurements(store, "recipe", {(one, other): np.array([0.1, np.nan]), (one, one): "no number"})
    again = get_measurements(store, "recipe", {one, other})
    np.testing.assert_array_equal(again[one, other].numbers, [0.1, np.nan])
    assert again[one, other].reason is None
    assert again[one, one].reason == "no number"
    assert not len(again[one, one].numbers)
    assert get_measurements(store, "another recipe", {one, other}) == {}
    assert set(get_measurements(store, "recipe", {one})) == {(one, one)}


def test_points_keep_their_numbers_and_new_ones_get_their_own(store: Store) -> None:
    points = [piece.point for piece in slices_of(store)]
    first = point_ids(store, points[:2])
    every = point_ids(store, points)
    assert {point: every[point] for point in points[:2]} == first
    assert len(set(every.values())) == 5


def test_points_are_measured_once(store: Store) -> None:
    pieces = slices_of(store)
    found = measure_points(store, RECIPE, pieces, norms, cluster=Cluster(), advance=lambda *_: None)
    for piece in pieces:
        X = read_slice(store.root, piece.segment, piece.array, piece.position)
        np.testing.assert_allclose(found[piece.point].numbers, [np.linalg.norm(X)])
    told: list[tuple[str, int, int]] = []
    again = measure_points(
        store, RECIPE, pieces, norms, cluster=Cluster(), advance=lambda *what: told.append((what[0], what[1], what[2]))
    )
    assert told == []
    assert again[pieces[0].point].numbers == found[pieces[0].point].numbers


def test_a_new_point_costs_its_own_row_and_nothing_again(store: Store) -> None:
    pieces = slices_of(store)
    asked: list[tuple[int, int]] = []

    def counting(root: Path, slices: Sequence[Slice], pairs: Sequence[tuple[int, int]]) -> list[np.ndarray | str]:
        asked.extend(pairs)
        return distances(root, slices, pairs)

    def measure(members: Sequence[Slice]) -> None:
        measure_pairs(
            store, RECIPE, {"all": list(combinations(members, 2))}, counting,
            point_bytes=lambda _: 1, cluster=Cluster(), advance=lambda *_: None,
        )  # fmt: skip

    measure(pieces[:4])
    assert len(asked) == 6
    asked.clear()
    measure(pieces)
    assert len(asked) == 4
    asked.clear()
    measure(pieces[::-1])
    assert asked == []


@pytest.mark.parametrize("at_once", [2, 3, 4, 5])
def test_small_memory_gives_the_same_numbers_in_tiles(store: Store, at_once: int) -> None:
    pieces = slices_of(store)
    held: list[int] = []

    def counting(root: Path, slices: Sequence[Slice], pairs: Sequence[tuple[int, int]]) -> list[np.ndarray | str]:
        held.append(len(slices))
        return distances(root, slices, pairs)

    found = measure_pairs(
        store, RECIPE, {"all": list(combinations(pieces, 2))}, counting,
        point_bytes=lambda _: Cluster().task_memory // at_once, cluster=Cluster(), advance=lambda *_: None,
    )  # fmt: skip
    assert max(held) <= at_once
    X = [read_slice(store.root, s.segment, s.array, s.position).astype(np.float64) for s in pieces]
    for i, j in combinations(range(5), 2):
        np.testing.assert_allclose(found[pieces[i].point, pieces[j].point].numbers, [np.linalg.norm(X[i] - X[j])])


def test_tiles_hold_every_pair_once_and_no_more_points_than_allowed() -> None:
    rng = np.random.default_rng(0)
    for n_points, at_once in ((5, 9), (9, 4), (30, 7), (30, 2)):
        every = list(combinations(range(100, 100 + n_points), 2))
        pairs = [every[i] for i in sorted(rng.choice(len(every), len(every) * 2 // 3, replace=False))]
        tiles = _tiles(pairs, at_once)
        assert all(len(points) <= at_once for points, _ in tiles)
        there = [tuple(sorted((points[i], points[j]))) for points, places in tiles for i, j in places]
        assert sorted(there) == sorted(pairs)


def test_points_that_do_not_fit_are_refused_with_what_they_need(store: Store) -> None:
    pieces = slices_of(store)
    with pytest.raises(InvalidInput, match=r"two points of 40 probes take 4\.0 GB .* give more --memory"):
        measure_pairs(
            store, RECIPE, {"all": [(pieces[0], pieces[1])]}, refuse,
            point_bytes=lambda _: 2 * 10**9, cluster=Cluster(), advance=lambda *_: None,
        )  # fmt: skip


def test_measurements_of_activations_that_are_made_anew_are_forgotten(store: Store, family: Path) -> None:
    pieces = slices_of(store)
    measure_points(store, RECIPE, pieces, norms, cluster=Cluster(), advance=lambda *_: None)
    shutil.rmtree(store.root / "segments" / pieces[1].segment[:2] / pieces[1].segment)
    run("--store", store.root, "ingest", "--path", family / "seed1", "--revisions", "all", "--probes",
        store.capture("seed1").probes)  # fmt: skip
    told: list[tuple[str, int, int]] = []
    measure_points(
        store, RECIPE, slices_of(store), norms, cluster=Cluster(),
        advance=lambda *what: told.append((what[0], what[1], what[2])),
    )  # fmt: skip
    assert told == [("tests", 1, 1)]


def test_a_step_that_is_not_there_is_refused_with_the_nearest(store: Store) -> None:
    selection = select_layers(store, Choice())
    with pytest.raises(InvalidInput, match=r"step 7 is not there in all of seed1, seed2, seed3: .* nearest 8"):
        choose_steps(selection, [7], all_by_default=False)
    assert choose_steps(selection, [], all_by_default=False) == ([8], {})
    assert choose_steps(selection, [4, 1], all_by_default=True) == ([1, 4], {})


def test_a_memory_figure_too_small_for_anything_is_refused() -> None:
    with pytest.raises(InvalidInput, match="memory is 1000 bytes: expected at least"):
        Cluster(memory=1000)
