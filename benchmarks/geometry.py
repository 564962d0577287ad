"""The geometry beside what a user would write instead: one process, one thread, interleaved, medians of ratios.

    python benchmarks/geometry.py [--rows gauge,cka] [--quick] [--store DIR --run NAME]

========== ======================================================================== ===================================
row        what is compared                                                         target
========== ======================================================================== ===================================
gauge      dense operators of 500 to 4000 probes: pdist; scikit-learn; ours         5, 5.5, 7, 15 x; 1.7 x; error 5e-6;
                                                                                    6 bytes / n²
distances  154 operators of 1000 probes: pdist; one float64 product; ours           10 x; error 1e-6; 32 MB
spectrum   50 largest eigenvalues of 1000 and 2000 probes: LAPACK; eigsh; ours      3, 5 x
barycenter each row of 4 operators of 200 and 500 probes: POT row by row; ours      4.5, 5 x; error 1e-5
cka        debiased, 13 layers with one another: pair by pair; Grams made once;     15 x
           ours
gradient   of the gauge, 512 probes: exact cdist; fast cdist; ours                  5 x; error 1e-5
knn        sparse operators: graphtools; ours                                       none
streamed   a product with an operator that is never held: scikit-learn; ours        less memory than the operator
========== ======================================================================== ===================================

The first two of each are the recipe and its careful version, see ``baselines_geometry.py``. Times are of the CPU,
ratios the median over paired repetitions, with their range. Errors are against float64: relative Frobenius for
operators, products and gradients, the largest relative one for distances, the largest absolute one for eigenvalues and
similarities, the largest L1 of a row for barycenters; where float64 is what the recipe computes in, it has none. POT
is timed on a sample of the rows, scaled to all of them; the sparse gauge has no reference but graphtools, and its error
is the largest difference. Memory is the peak that Python and numpy held during a call, beyond the input; the gauge is
allowed one float32 copy of its input besides.

``power law`` activations have 768 features, a spectrum like a transformer's, a mean of length 30 and two massive
dimensions; ``offset`` is a mean of 1000, ``twins`` come in groups of 20, that far apart. ``clusters`` are 8 of 20
features. With a store, the first three rows and ``cka`` are measured on stored activations too, with as many of the
layers and revisions as the row takes; targets are stated for the fixtures only, whose shapes they were set for.

All rows take some five minutes. Other work on the machine costs whoever uses the cache best: without a quiet machine a
missed ratio means little, a missed error or memory much.
"""

import os
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import baselines_geometry as user
import click
import numpy as np
import numpy.typing as npt
import torch
from baselines_geometry import FEATURES, power_law
from threadpoolctl import threadpool_info, threadpool_limits

from replay.geometry.distances import Frobenius, JensenShannon
from replay.geometry.eigen import top_eigenpairs
from replay.geometry.gauge import DiffusionGauge, Operator
from replay.geometry.knn_gauge import KnnGauge
from replay.geometry.measures import Measure
from replay.geometry.similarity import CKA
from replay.geometry.transport import barycenters
from store.errors import ReplayError

N_OPERATORS, N_LAYERS, N_EIGENVALUES = 154, 13, 50
INDEX_REG, SHARE_OF_MEDIAN = 0.01, 0.05

SHORT = 0.1
"""Seconds that a timed call is repeated for, at least."""

LONG = 15.0
"""Seconds of timing after which three repetitions are enough."""

Matrix = npt.NDArray[np.floating[Any]]
Floats = npt.NDArray[np.float64]
Call = Callable[[], Any]


def relative_error(A: Any, exact: Any) -> float:
    exact = np.asarray(exact, np.float64)
    return float(np.linalg.norm(np.asarray(A, np.float64) - exact) / np.linalg.norm(exact))


def largest_relative_error(A: Floats, exact: Floats) -> float:
    different = exact > 0
    return float(np.max(np.abs(A - exact)[different] / exact[different]))


def largest_error(A: Any, exact: Any) -> float:
    return float(abs(A - exact).max())


@dataclass(frozen=True, kw_only=True)
class Case:
    """Up to three ways to one result, and what is expected of ours."""

    what: str
    source: str
    """Where the input is from."""
    recipe: Call | None = None
    careful: Call | None = None
    ours: Call
    reference: Call | None = None
    """The result in float64; the recipe's, unless given."""
    error: Callable[[Any, Any], float] = relative_error
    """Of a result, beside the reference."""
    target: float | None = None
    """Least ratio of the recipe to ours."""
    careful_target: float | None = None
    """Least ratio of the careful version to ours."""
    most_error: float | None = None
    """Largest error of ours."""
    most_bytes: float | None = None
    """Largest peak of ours, which is not measured without."""
    scale: float = 1.0
    """How many times more ours computes than the recipe and its careful version."""


def twins(n: int, *, apart: float) -> npt.NDArray[np.float32]:
    """Make groups of 20 nearly equal probes."""
    noise = np.random.default_rng(1).standard_normal((n, FEATURES))
    X: npt.NDArray[np.float32] = (power_law(n // 20).repeat(20, axis=0) + apart * noise).astype(np.float32)
    return X


def clusters(n: int) -> list[Operator]:
    """Make four operators that differ by noise."""
    rng = np.random.default_rng(0)
    X = 4 * rng.standard_normal((8, 20))[rng.integers(0, 8, n)] + rng.standard_normal((n, 20))
    return [DiffusionGauge()(X + 0.3 * rng.standard_normal(X.shape)) for _ in range(4)]


def gauge(what: str, source: str, X: Matrix, *, alpha: float, targets: tuple[float, float] | None = None) -> Case:
    n, d = X.shape
    return Case(
        what=f"{what}, alpha {alpha:g}",
        source=source,
        recipe=partial(user.recipe_operator, X, alpha),
        careful=partial(user.careful_operator, X, alpha),
        ours=partial(DiffusionGauge(knn=user.KNN, alpha=alpha), X),
        target=targets and targets[0],
        careful_target=targets and targets[1],
        most_error=5e-6,
        most_bytes=targets and 6 * n**2 + 4 * n * d,
    )


def gauges() -> Iterator[Case]:
    for n, target in ((500, 5.0), (1000, 5.5), (2000, 7.0), (4000, 15.0)):
        for alpha in (0, 1):
            yield gauge(f"gauge, n = {n}", "power law", power_law(n), alpha=alpha, targets=(target, 1.7))
    yield gauge("gauge, n = 1000", "offset 1000", power_law(1000, offset=1000), alpha=0)
    for apart in (0.1, 0.01, 0.001):
        yield gauge("gauge, n = 1000", f"twins {apart:g}", twins(1000, apart=apart), alpha=0)


def compare(measure: Measure, points: list[Any]) -> Floats:
    return measure.compare([measure.view(point) for point in points])


def frobenius(what: str, source: str, operators: list[Operator], *, target: float | None = None) -> Case:
    matrices = [P.matrix for P in operators]
    return Case(
        what=what,
        source=source,
        recipe=partial(user.recipe_distances, matrices),
        careful=partial(user.careful_distances, matrices),
        ours=partial(compare, Frobenius(), operators),
        error=largest_relative_error,
        target=target,
        most_error=1e-6,
        most_bytes=32e6,
    )


def distances() -> Iterator[Case]:
    X, noise = power_law(1000), np.random.default_rng(1).standard_normal((1000, FEATURES)).astype(np.float32)
    operators = [DiffusionGauge()(X + scale * noise) for scale in np.logspace(-3, 1, N_OPERATORS)]
    yield frobenius(f"Frobenius, {N_OPERATORS} of n = 1000", "power law", operators, target=10)
    few = operators[::20]
    yield Case(
        what=f"Jensen-Shannon, {len(few)} of n = 1000",
        source="power law",
        recipe=partial(user.recipe_jensen_shannon, [P.matrix for P in few]),
        ours=partial(compare, JensenShannon(), few),
        error=largest_relative_error,
    )


def eigenvalues(what: str, source: str, X: Matrix, *, target: float | None = None) -> Case:
    P = DiffusionGauge()(X)
    root = np.sqrt(P.degrees)
    S = P.matrix * root[:, None] / root
    S = (S + S.T) / 2
    return Case(
        what=what,
        source=source,
        recipe=partial(user.recipe_spectrum, S, N_EIGENVALUES),
        careful=partial(user.careful_spectrum, S, N_EIGENVALUES),
        ours=lambda: top_eigenpairs(P, N_EIGENVALUES).values,
        error=largest_error,
        target=target,
        most_error=1e-6,
    )


def spectra() -> Iterator[Case]:
    for n, target in ((1000, 3.0), (2000, 5.0)):
        yield eigenvalues(f"top {N_EIGENVALUES} eigenvalues, n = {n}", "power law", power_law(n), target=target)


def transports() -> Iterator[Case]:
    for n, target in ((200, 4.5), (500, 5.0)):
        yield barycenter(n, user.index_cost(n), reg=INDEX_REG, debiased=False, target=target)
    yield barycenter(200, diffusion_cost(clusters(200)), reg=None, debiased=True)


def barycenter(n: int, cost: Floats, *, reg: float | None, debiased: bool, target: float | None = None) -> Case:
    """Take the index cost and what POT stops at by default, or a geometric one and as much patience as we have."""
    rows = np.stack([P.matrix for P in clusters(n)])
    exact, equal = list(rows.astype(np.float64)), np.full(len(rows), 1 / len(rows))
    sample = range(0, n, n // 5 if debiased else n // 10)
    if reg is None:
        reg = SHARE_OF_MEDIAN * float(np.median(cost[~np.eye(n, dtype=np.bool_)]))
    by_row = user.debiased_barycenters if debiased else user.careful_barycenters
    solve = partial(by_row, exact, cost, sample, reg=reg)

    def error(A: Floats, limit: Floats) -> float:
        return float(np.abs((A[sample] if len(A) == n else A) - limit).sum(axis=1).max())

    return Case(
        what=f"debiased barycenters, n = {n}" if debiased else f"barycenters, n = {n}",
        source="clusters",
        recipe=solve if debiased else partial(user.recipe_barycenters, exact, sample, reg=reg),
        careful=partial(solve, stopThr=1e-7) if debiased else solve,
        ours=lambda: barycenters(rows, cost, equal, reg=reg, debiased=debiased).rows,
        reference=partial(solve, stopThr=1e-12 if debiased else 1e-7, numItermax=100_000),
        error=error,
        target=target,
        most_error=2e-5 if debiased else 1e-5,
        scale=n / len(sample),
    )


def diffusion_cost(operators: list[Operator]) -> Floats:
    """Mean squared diffusion distance after one step."""
    costs = []
    for P in operators:
        Y = P.matrix / np.sqrt(P.degrees / P.degrees.sum())
        costs.append(((Y[:, None] - Y) ** 2).sum(axis=2))
    cost: Floats = np.mean(costs, axis=0)
    return cost


def alignment(what: str, source: str, layers: list[Matrix], *, target: float | None = None) -> Case:
    return Case(
        what=what,
        source=source,
        recipe=partial(user.recipe_cka, layers),
        careful=partial(user.careful_cka, layers),
        ours=partial(compare, CKA(), layers),
        error=largest_error,
        target=target,
        most_error=1e-6,
    )


def alignments() -> Iterator[Case]:
    X = power_law(512)
    noise = np.random.default_rng(1).standard_normal((N_LAYERS, *X.shape)).astype(np.float32)
    layers = [X + scale * E for scale, E in zip(np.logspace(-1, 1, N_LAYERS), noise, strict=True)]
    yield alignment(f"CKA, {N_LAYERS} x {N_LAYERS}, n = 512", "power law", layers, target=15)


def gradients() -> Iterator[Case]:
    X = torch.from_numpy(power_law(512))
    direction = torch.randn(len(X), len(X), generator=torch.Generator().manual_seed(0))

    def slope(operator: Callable[[torch.Tensor], torch.Tensor], Y: torch.Tensor) -> torch.Tensor:
        leaf = Y.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((operator(leaf) * direction.to(Y.dtype)).sum(), leaf)
        return gradient

    yield Case(
        what="gradient of the gauge, n = 512",
        source="power law",
        recipe=partial(slope, user.recipe_torch_operator, X),
        careful=partial(slope, user.careful_torch_operator, X),
        ours=partial(slope, lambda Y: DiffusionGauge(knn=user.KNN, alpha=0)(Y).matrix, X),
        reference=partial(slope, user.recipe_torch_operator, X.double()),
        target=5,
        most_error=1e-5,
    )


def sparse_gauges() -> Iterator[Case]:
    for n in (1000, 4000):
        X = power_law(n)
        yield Case(
            what=f"sparse gauge, n = {n}",
            source="power law",
            recipe=partial(user.graphtools_operator, X),
            ours=lambda X=X: KnnGauge()(X).matrix,  # type: ignore[misc]
            error=largest_error,
        )


def streams() -> Iterator[Case]:
    n = 4000
    X, v = power_law(n), np.random.default_rng(1).standard_normal(n).astype(np.float32)
    yield Case(
        what=f"streamed gauge and a product, n = {n}",
        source="power law",
        careful=lambda: user.careful_operator(X, 1) @ v,
        ours=lambda: DiffusionGauge().stream(X) @ v,
        reference=lambda: user.recipe_operator(X, 1) @ v,
        most_error=5e-6,
        most_bytes=4 * n**2,
    )


ROWS: dict[str, Callable[[], Iterator[Case]]] = {
    "gauge": gauges,
    "distances": distances,
    "spectrum": spectra,
    "barycenter": transports,
    "cka": alignments,
    "gradient": gradients,
    "knn": sparse_gauges,
    "streamed": streams,
}


def stored_rows(store: Path, run: str) -> dict[str, Callable[[], Iterator[Case]]]:
    from replay.opening import open_store

    activations = open_store(store).activations(run)["activations"]
    n_revisions, n_layers = activations.sizes["revision"], activations.sizes["layer"]

    def point(number: int) -> Matrix:
        return np.asarray(activations.isel(revision=number // n_layers, layer=number % n_layers))

    last = [point((n_revisions - 1) * n_layers + layer) for layer in range(n_layers)]
    n, d = last[0].shape
    middle = n_layers // 2

    def frobenius_of_all() -> Iterator[Case]:
        chosen = np.unique(np.linspace(0, n_revisions * n_layers - 1, N_OPERATORS).astype(int)).tolist()
        yield frobenius(f"Frobenius, {len(chosen)} of n = {n}", run, [DiffusionGauge()(point(i)) for i in chosen])

    return {
        "gauge": lambda: (gauge(f"gauge, n = {n}, d = {d}", run, last[middle], alpha=alpha) for alpha in (0, 1)),
        "distances": frobenius_of_all,
        "spectrum": lambda: iter([eigenvalues(f"top {N_EIGENVALUES} eigenvalues, n = {n}", run, last[middle])]),
        "cka": lambda: iter([alignment(f"CKA, {n_layers} x {n_layers}, n = {n}", run, last)]),
    }


def cpu_seconds(call: Call) -> float:
    """Time one call, averaged over as many as are needed for the clock."""
    calls, elapsed, start = 0, 0.0, time.process_time()
    while elapsed < SHORT:
        call()
        calls += 1
        elapsed = time.process_time() - start
    return elapsed / calls


def peak_bytes(call: Call) -> int:
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


HEADER = (
    f"{'':<36} {'input':<20} {'recipe':>9} {'careful':>9} {'ours ms':>9}  {'x recipe':<26} {'x careful':<26} "
    f"{'errors':<24} {'bound':<8} {'peak MB: careful, ours':<23} verdict"
)


def measure(case: Case, repeats: int) -> str:
    """Run each once for its error, then all in turns, and write the line of the table."""
    calls = {"recipe": case.recipe, "careful": case.careful, "ours": case.ours}
    present = {name: call for name, call in calls.items() if call is not None}
    results = {name: call() for name, call in present.items()}
    exact = case.reference() if case.reference else results["recipe"]
    errors = {name: case.error(result, exact) for name, result in results.items()}
    del results, exact

    seconds: dict[str, list[float]] = {name: [] for name in present}
    start = time.process_time()
    for repeat in range(repeats):
        names = list(present)
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:  # none always comes first
            seconds[name].append(cpu_seconds(present[name]) * (1 if name == "ours" else case.scale))
        if repeat >= 2 and time.process_time() - start > LONG:
            break

    met, ratios = [], []
    for name, target in (("recipe", case.target), ("careful", case.careful_target)):
        if name not in present:
            ratios.append("-")
            continue
        values = [a / b for a, b in zip(seconds[name], seconds["ours"], strict=True)]
        median = statistics.median(values)
        ratios.append(f"{median:.1f} ({min(values):.1f} to {max(values):.1f})")
        if target is not None:
            ratios[-1] += f" >= {target:g}"
            met.append(median >= target)
    if case.most_error is not None:
        met.append(errors["ours"] <= case.most_error)
    memory = "-"
    if case.most_bytes is not None:
        peaks = [peak_bytes(call) / 1e6 for call in (case.careful, case.ours) if call is not None]
        memory = f"{', '.join(f'{peak:.1f}' for peak in peaks)} <= {case.most_bytes / 1e6:.1f}"
        met.append(peaks[-1] <= case.most_bytes / 1e6)
    times = " ".join(f"{1e3 * statistics.median(seconds[n]):>9.1f}" if n in present else f"{'-':>9}" for n in calls)
    shown = " ".join(f"{errors[n]:.1e}" if n in present else f"{'-':^7}" for n in calls)
    bound = "-" if case.most_error is None else f"{case.most_error:.0e}"
    verdict = ("met" if all(met) else "missed") if met else "-"
    return (
        f"{case.what:<36} {case.source:<20} {times}  {ratios[0]:<26} {ratios[1]:<26} "
        f"{shown:<24} {bound:<8} {memory:<23} {verdict}"
    )


@click.command()
@click.option("--rows", default=",".join(ROWS), show_default=True, help="Rows to measure.")
@click.option("--repeats", default=5, show_default=True, help="Paired repetitions; three where they take long.")
@click.option("--quick", is_flag=True, help="One repetition; no ratio to be trusted.")
@click.option("--store", type=click.Path(exists=True, path_type=Path), help="A store whose activations to take too.")
@click.option("--run", help="The run of that store.")
def main(rows: str, repeats: int, quick: bool, store: Path | None, run: str | None) -> None:
    """Measure the geometry beside what a user would write instead."""
    chosen = rows.split(",")
    unknown = [row for row in chosen if row not in ROWS]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is no row: give some of {', '.join(ROWS)} with commas between them")
    if (store is None) != (run is None):
        raise click.UsageError("--store and --run go together: give both or none")
    try:
        stored = stored_rows(store, run) if store and run else {}
    except ReplayError as error:
        raise click.ClickException(str(error)) from error
    torch.set_num_threads(1)
    with threadpool_limits(1):
        libraries = {f"{pool['internal_api']} for {pool.get('architecture', 'any')}" for pool in threadpool_info()}
        packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "scikit-learn", "torch", "POT"))
        print(f"{packages}; {', '.join(sorted(libraries))}; load of the machine {os.getloadavg()[0]:.1f}\n\n{HEADER}")
        for row in chosen:
            for cases in (ROWS[row], stored.get(row)):
                for case in cases() if cases else ():
                    print(measure(case, 1 if quick else repeats), flush=True)
    print(f"\nload of the machine {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
