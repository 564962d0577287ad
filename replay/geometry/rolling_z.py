"""The rolling z-score rule: the usual way to look for jumps, kept to be compared with."""

import numpy as np
import numpy.typing as npt

__all__ = ["rolling_z_jumps"]


def rolling_z_jumps(values: npt.ArrayLike, *, window: int = 50, threshold: float = 3.0, fewest: int = 20) -> list[int]:
    """Return the positions whose value lies far from the mean of those before it.

    A value is a jump if |v_i - m| / s > ``threshold``, where m and s are the mean and the standard deviation (of the
    population) of the up to ``window`` values before it, and there are at least ``fewest``. Where s is below 1e-10
    nothing is a jump. The rule knows no training steps, takes neighbouring values for independent, and reports one
    change as often as values exceed the threshold.

    Parameters
    ----------
    values
        (n,) finite values.
    window, fewest
        In values.
    threshold
        In standard deviations.
    """
    v = np.asarray(values, np.float64)
    found = []
    for i in range(fewest, len(v)):
        before = v[max(0, i - window) : i]
        spread = before.std()
        if spread >= 1e-10 and abs(v[i] - before.mean()) / spread > threshold:
            found.append(i)
    return found
