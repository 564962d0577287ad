"""What every measure promises, whichever it is."""

import json
import tracemalloc

import numpy as np
import pytest

from replay.geometry.distances import Frobenius
from replay.geometry.gauge import DiffusionGauge
from replay.geometry.measures import MEASURES, find_measure
from replay.geometry.products import inner_products
from store.errors import InvalidInput

every_name = pytest.mark.parametrize("name", MEASURES)


def points(name: str, n: int = 200, d: int = 30) -> list:  # type: ignore[type-arg]
    rng = np.random.default_rng(0)
    X, E = rng.standard_normal((2, n, d)) * np.arange(1, d + 1) ** -0.5
    activations = [(X + a * E).astype(np.float32) for a in (0, 0.1, 1)]
    return [DiffusionGauge()(A) for A in activations] if MEASURES[name].of == "operator" else activations


@every_name
def test_a_measure_is_found_by_its_name_and_says_its_parameters_in_json(name: str) -> None:
    measure = find_measure(name)
    parameters = measure.parameters()
    assert json.loads(json.dumps(parameters)) == parameters
    assert parameters["measure"] == measure.name == name
    assert parameters["version"] == type(measure).version
    assert find_measure(name) == measure
    assert measure.title
    assert type(measure).__doc__


def test_names_and_titles_are_one_each() -> None:
    assert len({measure.title for measure in MEASURES.values()}) == len(MEASURES) == 14


@every_name
def test_the_same_points_have_the_same_values_on_every_call(name: str) -> None:
    measure = find_measure(name)
    first, second = ([measure.view(point) for point in points(name)] for _ in range(2))
    assert np.array_equal(measure.compare(first), measure.compare(second))
    assert np.array_equal(measure.null(first), measure.null(second), equal_nan=True)
    assert np.isnan(measure.null(first)).all() == (measure.no_null is not None)


@every_name
def test_distances_are_zero_at_home_and_grow_with_what_is_added(name: str) -> None:
    measure = find_measure(name)
    D = measure.to_distance(measure.compare([measure.view(point) for point in points(name)]))
    assert not np.diagonal(D).any()
    assert 0 < D[0, 1] < D[0, 2]


@every_name
def test_a_view_takes_about_the_memory_it_says(name: str) -> None:
    measure, point = find_measure(name), points(name)[0]
    view = measure.view(point)
    arrays = [part for item in view for part in (item if isinstance(item, tuple) else (item,))]
    held = sum(part.nbytes for part in arrays if isinstance(part, np.ndarray))
    said = measure.view_bytes(200, 30)
    assert held <= 1.1 * said
    assert said <= 2 * held


def test_a_name_that_is_none_is_answered_with_the_nearest() -> None:
    with pytest.raises(InvalidInput, match="no measure 'frobenious': did you mean frobenius"):
        find_measure("frobenious")
    with pytest.raises(InvalidInput, match="no measure 'zzz': There are frobenius, frobenius_normalized, hellinger"):
        find_measure("zzz")
    with pytest.raises(InvalidInput, match="spectral has no parameter knn; it has k"):
        find_measure("spectral", knn=3)
    with pytest.raises(InvalidInput, match="cka has no parameter k; it has none"):
        find_measure("cka", k=3)
    assert find_measure("spectral", k=3).parameters() == {"measure": "spectral", "version": 1, "k": 3}


def test_inner_products_are_those_of_numpy_over_chunks_that_do_not_divide() -> None:
    A = np.random.default_rng(0).random((5, 9000)) ** 2
    assert np.allclose(inner_products(list(A)).products, A @ A.T, rtol=1e-12)
    assert np.allclose(inner_products(list(A), root=True).products, np.sqrt(A) @ np.sqrt(A).T, rtol=1e-12)
    B = A - A.mean(axis=0)
    found = inner_products(list(A[:2]), list(A[2:]), centred=True)
    assert np.allclose(found.products, B[:2] @ B[2:].T, rtol=1e-9)
    assert np.allclose(np.concatenate([found.left, found.right]), (B**2).sum(axis=1), rtol=1e-12)


def test_a_trajectory_of_operators_is_compared_in_little_memory() -> None:
    # flattening into one float64 table takes eight bytes an entry of every operator
    rng = np.random.default_rng(0)
    matrices = [rng.random((400, 400)).astype(np.float32) for _ in range(60)]
    measure = Frobenius()
    views = [measure.view(P) for P in matrices]
    tracemalloc.start()
    measure.compare(views)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * 2**20 < 60 * 400 * 400 * 8
