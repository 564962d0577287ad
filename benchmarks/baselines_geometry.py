"""What a user would write instead of this project's transport: one barycenter at a time.

Run with ``OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/baselines_geometry.py``.
"""

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from replay.geometry.transport import barycenters

N_OPERATORS, REG, SAMPLE, REPEATS = 4, 0.01, 20, 3

Matrix = npt.NDArray[np.floating[Any]]


def recipe_barycenters(operators: list[Matrix], rows: range) -> Matrix:
    """Write the definition down: the cost and its kernel made again for every row of probe indices."""
    import ot

    n = len(operators[0])
    merged = []
    for i in rows:
        cost = ot.dist(np.arange(n, dtype=np.float64)[:, None])
        cost /= cost.max()
        merged.append(ot.bregman.barycenter(np.stack([P[i] for P in operators], axis=1), cost, reg=REG))
    return np.array(merged)


def careful_barycenters(operators: list[Matrix], cost: Matrix, rows: range) -> Matrix:
    """Do as a careful POT user would: the cost made once, still a call a row."""
    import ot

    return np.array([ot.bregman.barycenter(np.stack([P[i] for P in operators], axis=1), cost, reg=REG) for i in rows])


def simulated_operators(n: int) -> list[Matrix]:
    from replay.geometry.gauge import DiffusionGauge

    rng = np.random.default_rng(0)
    X = 4 * rng.standard_normal((8, 20))[rng.integers(0, 8, n)] + rng.standard_normal((n, 20))
    return [DiffusionGauge()(X + 0.3 * rng.standard_normal(X.shape)).matrix for _ in range(N_OPERATORS)]


def index_cost(n: int) -> Matrix:
    cost: Matrix = np.subtract.outer(np.arange(n), np.arange(n)).astype(np.float64) ** 2
    cost /= cost.max()
    return cost


def main() -> None:
    """Time the recipe's problem: rows of a cost over indices, not debiased, a sample of rows scaled to all of them."""
    print("n     recipe s  careful s  float64 s  ours s  x recipe  x careful  L1 to float64")
    for n in (200, 500):
        operators, cost = simulated_operators(n), index_cost(n)
        rows, weights = np.stack(operators), np.full(N_OPERATORS, 1 / N_OPERATORS)
        sample = range(0, n, n // SAMPLE)
        seconds = []
        for _ in range(REPEATS):
            marks = [time.process_time()]
            recipe_barycenters([P.astype(np.float64) for P in operators], sample)
            marks.append(time.process_time())
            careful_barycenters([P.astype(np.float64) for P in operators], cost, sample)
            marks.append(time.process_time())
            exact = barycenters(rows.astype(np.float64), cost, weights, reg=REG, debiased=False).rows
            marks.append(time.process_time())
            ours = barycenters(rows, cost, weights, reg=REG, debiased=False).rows
            marks.append(time.process_time())
            seconds.append(np.diff(marks) * [n / len(sample), n / len(sample), 1, 1])
        a, b, c, d = np.median(seconds, axis=0)
        error = np.abs(ours - exact).sum(axis=1).max()
        print(f"{n:<5} {a:>8.2f} {b:>10.2f} {c:>10.2f} {d:>7.2f} {a / d:>9.1f} {b / d:>10.1f}  {error:.1e}")


if __name__ == "__main__":
    main()
