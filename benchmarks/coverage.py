"""How often nominal 95 % intervals of a spread, and of its rate, hold what fresh probes or fresh runs would give.

Run with ``OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/coverage.py [probes|runs|rate]``; each takes
minutes. ``error`` is the mean standard error over the standard deviation of the spread among fresh draws: 1 is exact.
"""

import sys
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from replay.geometry.convergence import convergence_rate, phases_of_convergence
from replay.geometry.gauge import DiffusionGauge
from replay.geometry.spread import spread_from_activations
from replay.geometry.statistics import Interval, jackknife_interval, probe_groups, runs_interval

GAUGE = DiffusionGauge()
CENTRES = 2 * np.random.default_rng(7).standard_normal((12, 8))
MAPS = np.random.default_rng(8).standard_normal((9, 8, 16)) / np.sqrt(8)

Floats = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, int], list[Floats]]


def clusters(rng: np.random.Generator, n: int, n_runs: int) -> list[Floats]:
    return seen(CENTRES[rng.integers(12, size=n)] + rng.standard_normal((n, 8)), rng, n_runs)


def heavy_tailed_clusters(rng: np.random.Generator, n: int, n_runs: int) -> list[Floats]:
    return seen(CENTRES[rng.integers(12, size=n)] + rng.standard_t(3, size=(n, 8)), rng, n_runs)


def no_clusters(rng: np.random.Generator, n: int, n_runs: int) -> list[Floats]:
    return seen(rng.standard_normal((n, 8)), rng, n_runs)


def nearly_equal_runs(rng: np.random.Generator, n: int, n_runs: int) -> list[Floats]:
    hidden = np.tanh((CENTRES[rng.integers(12, size=n)] + rng.standard_normal((n, 8))) @ MAPS[0])
    return [hidden + 0.03 * rng.standard_normal(hidden.shape) for _ in range(n_runs)]


def tight_clusters(rng: np.random.Generator, n: int, n_runs: int) -> list[Floats]:
    return seen(CENTRES[rng.integers(12, size=n)] + 0.3 * rng.standard_normal((n, 8)), rng, n_runs)


def seen(Z: Floats, rng: np.random.Generator, n_runs: int, *, noise: float = 0.3) -> list[Floats]:
    """Show what is hidden to each run through a map of its own."""
    return [np.tanh(Z @ W) + noise * rng.standard_normal((len(Z), 16)) for W in MAPS[:n_runs]]


def distances(matrices: Sequence[npt.NDArray[np.float32]]) -> Floats:
    """Mean raw and normalised distance."""
    flat = [P.astype(np.float64) for P in matrices]
    norms = [np.sum(P**2) for P in flat]
    pairs = list(combinations(range(len(flat)), 2))
    squares = np.array([np.sum((flat[i] - flat[j]) ** 2) for i, j in pairs])
    scaled = squares / [norms[i] + norms[j] for i, j in pairs]
    return np.array([np.sqrt(squares).mean(), np.sqrt(scaled).mean()])


def recomputed(runs: Sequence[Floats], seed: int) -> list[Interval]:
    """Make the intervals from operators computed anew without each group."""
    groups = probe_groups(len(runs[0]), seed=seed)
    left = zip(*(GAUGE.leave_group_out(X, groups) for X in runs), strict=True)
    replicates = np.array([distances([P.matrix for P in part]) for part in left])
    values = distances([GAUGE(X).matrix for X in runs])
    return [jackknife_interval(float(value), parts) for value, parts in zip(values, replicates.T, strict=True)]


def first_order(runs: Sequence[Floats], seed: int) -> list[Interval]:
    spread = spread_from_activations(runs, GAUGE, seed=seed)
    return [jackknife_interval(part.value, part.replicates) for part in (spread.raw, spread.normalized)]


def over_probes() -> None:
    print(f"{'population':22} runs probes  interval      raw: held % error   normalised: held % error")
    cases = [(draw, n, R) for draw in (clusters, heavy_tailed_clusters, no_clusters, nearly_equal_runs)
             for n, R in ((100, 2), (100, 3), (256, 3), (100, 5), (512, 2))]  # fmt: skip
    for draw, n, n_runs in [*cases, (tight_clusters, 100, 3), (tight_clusters, 256, 3)]:
        rng, n_draws = np.random.default_rng(5), {100: 300, 256: 200, 512: 150}[n]
        fresh = np.array([distances([GAUGE(X).matrix for X in draw(rng, n, n_runs)]) for _ in range(3 * n_draws)])
        samples = [draw(rng, n, n_runs) for _ in range(n_draws)]
        for interval in (first_order, recomputed)[: 2 if n < 512 else 1]:
            ends = np.array([interval(runs, seed) for seed, runs in enumerate(samples)])
            report(f"{draw.__name__:22} {n_runs:4} {n:6}  {interval.__name__:12}", ends, fresh, n_groups=15)


def over_runs() -> None:
    print(f"{'population':14} runs    raw: held % error   normalised: held % error")
    rng, n, n_there = np.random.default_rng(1), 100, 600
    Z = CENTRES[rng.integers(12, size=n)] + rng.standard_normal((n, 8))

    def run(kind: str) -> Floats:
        W = MAPS[rng.integers(2)] if kind == "two kinds" else rng.standard_normal((8, 16)) / np.sqrt(8)
        noise = {"alike": 0.3, "varied": 0.3 * rng.lognormal(0, 0.7), "two kinds": 0.1}[kind]
        X: Floats = np.tanh(Z @ W) + noise * rng.standard_normal((n, 16))
        return X

    for kind in ("alike", "varied", "two kinds"):
        P = np.stack([GAUGE(run(kind)).matrix.ravel().astype(np.float64) for _ in range(n_there)])
        squares = np.sum(P**2, axis=1)[:, None] + np.sum(P**2, axis=1)
        raw = np.sqrt(np.maximum(squares - 2 * P @ P.T, 0))
        tables = raw, raw / np.sqrt(squares)
        for n_runs in (4, 5, 9):
            pairs = list(combinations(range(n_runs), 2))
            chosen = [rng.choice(n_there, n_runs, replace=False) for _ in range(2000)]
            samples = [[{(i, j): D[c[i], c[j]] for i, j in pairs} for D in tables] for c in chosen]
            ends = np.array([[runs_interval(table, n_runs) for table in sample] for sample in samples])
            every = np.triu_indices(n_there, 1)
            spreads = np.array([[np.mean(list(table.values())) for table in sample] for sample in samples])
            expected = np.array([D[every].mean() for D in tables])
            report(f"{kind:14} {n_runs:4}", ends, spreads - spreads.mean(axis=0) + expected, n_groups=n_runs)


def over_training() -> None:
    """Let runs converge: their maps draw near to one, by 0.75 over the training."""
    steps, n, n_runs = [0, 100, 200, 400, 800, 1600, 3200, 4800, 6400], 100, 3
    rng = np.random.default_rng(2)

    def histories(rng: np.random.Generator) -> list[list[Floats]]:
        Z = CENTRES[rng.integers(12, size=n)] + rng.standard_normal((n, 8))
        noise = rng.standard_normal((n_runs, n, 16))
        apart = [1 - 0.75 * step / steps[-1] for step in steps]
        maps = [[MAPS[8] + a * (W - MAPS[8]) for W in MAPS[:n_runs]] for a in apart]
        return [
            [np.tanh(Z @ W) + 0.3 * a * e for W, e in zip(at, noise, strict=True)]
            for at, a in zip(maps, apart, strict=True)
        ]

    fresh = [[distances([GAUGE(X).matrix for X in runs]) for runs in histories(rng)] for _ in range(600)]
    curves, one = np.array(fresh), np.ones((len(steps), 2))
    slopes = [[convergence_rate(steps, curve[:, m], one).slope for m in (0, 1)] for curve in curves]
    ends, names = [], []
    for seed in range(200):
        spreads = [spread_from_activations(runs, GAUGE, seed=seed) for runs in histories(rng)]
        curve = [[getattr(at, name) for at in spreads] for name in ("raw", "normalized")]
        parts = [([p.value for p in parts], [p.replicates for p in parts]) for parts in curve]
        ends.append([convergence_rate(steps, *part)[1:3] for part in parts])
        names.append(" ".join(phase.direction for phase in phases_of_convergence(steps, *parts[1])))
    report("rate", np.array(ends), np.array(slopes), n_groups=15)
    print("phases", {name: names.count(name) for name in sorted(set(names))})


def report(name: str, ends: Floats, fresh: Floats, *, n_groups: int) -> None:
    low, high = ends[..., 0], ends[..., 1]
    held = 100 * np.mean((low <= fresh.mean(axis=0)) & (fresh.mean(axis=0) <= high), axis=0)
    errors = (high - low) / 2 / student.ppf(0.975, n_groups - 1)
    ratio = np.sqrt(np.mean(errors**2, axis=0)) / fresh.std(axis=0)
    print(f"{name}   {held[0]:10.1f} {ratio[0]:6.2f}   {held[1]:13.1f} {ratio[1]:8.2f}", flush=True)


def main() -> None:
    studies = {"probes": over_probes, "runs": over_runs, "rate": over_training}
    for name in sys.argv[1:] or studies:
        studies[name]()


if __name__ == "__main__":
    main()
