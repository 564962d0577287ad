"""Dimensions of activations beside a singular value decomposition, and how often their intervals hold fresh probes.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/dimension.py [speed|coverage]

``speed`` compares with what one writes with ``scipy.linalg.svdvals`` of the centred activations, in their own float32
and in float64: participation ratio and stable rank alone (target: 6 times as fast as float32 at 1000 probes), then all
centred metrics of a spectrum; CPU time, one thread, interleaved, medians of paired ratios with their range. Errors are
the largest relative ones against float64. ``one point`` is what `replay analyze dimension` does for a layer of a
checkpoint: eight metrics, each with its interval.

``coverage`` draws probes anew from populations of more features than probes and of fewer: how often the nominal 95 %
interval holds the mean of the metric over fresh draws, and the root mean square of its standard error over the standard
deviation among fresh draws (1 is exact). Some three minutes.
"""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from baselines_geometry import power_law
from scipy.linalg import svdvals
from scipy.special import stdtrit
from threadpoolctl import threadpool_limits

from replay.analyses.dimension import DEFAULTS
from replay.geometry.dimension import METRICS, N_GROUPS, Estimate, dimension, dimension_with_doubt

TWO = ("stable_rank", "participation_ratio")
CENTRED = METRICS[:9]
SPECTRAL = tuple(name for name in CENTRED if name not in ("two_nn", "participation_ratio_unbiased", "alpha_req"))
CENTRES = 2 * np.random.default_rng(7).standard_normal((12, 8))
MAP = np.random.default_rng(8).standard_normal((8, 300)) / np.sqrt(8)

Floats = npt.NDArray[np.float64]
Call = Callable[[], Any]


def by_svd(X: npt.NDArray[np.floating[Any]], dtype: type[np.floating[Any]]) -> dict[str, float]:
    X = X.astype(dtype)
    s = svdvals(X - X.mean(axis=0)).astype(np.float64)
    energies, p = s**2, s / s.sum()
    p = p[p > 0]
    return {
        "stable_rank": energies.sum() / energies[0],
        "participation_ratio": energies.sum() ** 2 / (energies**2).sum(),
        "participation_ratio_singular": s.sum() ** 2 / energies.sum(),
        "effective_rank": np.exp(-(p @ np.log(p))),
        "cumulative_energy_90": np.searchsorted(np.cumsum(energies) / energies.sum(), 0.9) + 1.0,
        "nuclear_norm_ratio": s.sum() / s[0],
    }


def error(found: dict[str, Any], exact: dict[str, float]) -> float:
    return max(float(abs(value - exact[name]) / exact[name]) for name, value in found.items())


def cpu_seconds(call: Call) -> float:
    calls, start = 0, time.process_time()
    while calls == 0 or time.process_time() - start < 0.1:
        call()
        calls += 1
    return (time.process_time() - start) / calls


def speed() -> None:
    print(f"{'':34} {'f32 ms':>8} {'f64 ms':>8} {'ours ms':>8}  {'x float32':<20} {'x float64':<20} errors: f32, ours")
    for names, what in ((TWO, "participation ratio, stable rank"), (SPECTRAL, "six metrics of the spectrum")):
        for n in (500, 1000, 2000, 4000):
            X = power_law(n)
            exact = by_svd(X, np.float64)
            calls: list[Call] = [partial(by_svd, X, np.float32), partial(by_svd, X, np.float64),
                                 partial(dimension, X, metrics=names)]  # fmt: skip
            seconds: list[list[float]] = [[], [], []]
            for repeat in range(7):
                for k in [(repeat + shift) % 3 for shift in range(3)]:
                    seconds[k].append(cpu_seconds(calls[k]))
            ratios = [[a / b for a, b in zip(seconds[k], seconds[2], strict=True)] for k in (0, 1)]
            shown = [f"{statistics.median(r):.1f} ({min(r):.1f} to {max(r):.1f})" for r in ratios]
            times = " ".join(f"{1e3 * statistics.median(part):8.1f}" for part in seconds)
            single = {name: value for name, value in calls[0]().items() if name in names}
            errors = f"{error(single, exact):.0e}, {error(calls[2](), exact):.0e}"
            print(f"{f'{what}, n = {n}':34} {times}  {shown[0]:<20} {shown[1]:<20} {errors}", flush=True)
    for n, d in ((512, 768), (512, 64)):
        X = power_law(n)[:, :d]
        one = 1e3 * cpu_seconds(partial(dimension_with_doubt, X, metrics=DEFAULTS))
        two = 1e3 * cpu_seconds(partial(dimension_with_doubt, X, metrics=TWO))
        print(f"one point, n = {n}, d = {d}: {one:.0f} ms; stable rank and participation ratio alone {two:.0f} ms")


def power(rng: np.random.Generator, n: int, d: int) -> Floats:
    X: Floats = rng.standard_normal((n, d)) * np.arange(1, d + 1) ** -0.7
    return X


def independent(rng: np.random.Generator, n: int, d: int) -> Floats:
    return rng.standard_normal((n, d))


def heavy_tailed(rng: np.random.Generator, n: int, d: int) -> Floats:
    X: Floats = rng.standard_t(3, size=(n, d)) * np.arange(1, d + 1) ** -0.7
    return X


def clusters(rng: np.random.Generator, n: int, d: int) -> Floats:
    hidden = CENTRES[rng.integers(12, size=n)] + rng.standard_normal((n, 8))
    X: Floats = np.tanh(hidden @ MAP[:, :d]) + 0.3 * rng.standard_normal((n, d))
    return X


def uneven_lengths(rng: np.random.Generator, n: int, d: int) -> Floats:
    return power(rng, n, d) * rng.lognormal(0, 0.5, size=(n, 1))


def collapsed(rng: np.random.Generator, n: int, d: int) -> Floats:
    X = power(rng, n, d)
    X[:, 0] *= 10
    return X


def coverage() -> None:
    print("held %, error", *CENTRED, sep="  ")
    for draw in (power, independent, heavy_tailed, clusters, uneven_lengths, collapsed):
        for n, d in ((256, 64), (100, 300)):
            rng, n_draws = np.random.default_rng(5), 200
            fresh = [dimension(draw(rng, n, d), metrics=CENTRED) for _ in range(2 * n_draws)]
            samples = [dimension_with_doubt(draw(rng, n, d), metrics=CENTRED) for _ in range(n_draws)]
            cells = [held([one[name] for one in fresh], [one[name] for one in samples]) for name in CENTRED]
            print(f"{draw.__name__:15} {n:4} {d:4}  " + "  ".join(cells), flush=True)


def held(fresh: list[float | str], samples: list[Estimate | str]) -> str:
    if any(isinstance(one, str) or isinstance(one.interval, str) for one in samples):
        return f"{'-':>9}"
    expected, values = np.mean(fresh), np.array(fresh, np.float64)  # type: ignore[arg-type]
    low, high = np.array([one.interval for one in samples]).T  # type: ignore[union-attr]
    errors = (high - low) / 2 / stdtrit(N_GROUPS - 1, 0.975)
    ratio = f"{np.sqrt(np.mean(errors**2)) / values.std():4.2f}" if values.std() else "   -"
    return f"{100 * np.mean((low <= expected) & (expected <= high)):4.0f} {ratio}"


def main() -> None:
    studies = {"speed": speed, "coverage": coverage}
    with threadpool_limits(1):
        for name in sys.argv[1:] or studies:
            studies[name]()


if __name__ == "__main__":
    main()
