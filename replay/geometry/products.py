"""Inner products of many long vectors, all pairs at once and a chunk of their entries at a time."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Products", "inner_products"]

CHUNK = 4096
"""Entries of each vector at a time: 154 vectors in float64 are 5 MB then."""

Floats = npt.NDArray[np.float64]
Vector = npt.NDArray[np.floating[Any]]


class Products(NamedTuple):
    """Inner products of the vectors on the left with those on the right."""

    products: Floats
    """(L, R); exactly symmetric where the right is the left."""
    left: Floats
    """(L,) squared norms."""
    right: Floats
    """(R,) squared norms."""


def inner_products(
    left: Sequence[Vector], right: Sequence[Vector] | None = None, *, centred: bool = False, root: bool = False
) -> Products:
    """Compute x·y for each vector on the left and on the right, in float64.

    Parameters
    ----------
    left, right
        Vectors of one length; without a right, the left with itself at half the price.
    centred
        Whether to subtract the mean of all vectors from each first. That changes no distance, and what vectors have in
        common then costs their distances no bits.
    root
        Whether to take the square root of each entry before that.

    Returns
    -------
    Products
        Memory beyond the vectors: 32 KiB a vector, and the products.
    """
    size = len(left[0])
    others = () if right is None else right
    n_left, n_all = len(left), len(left) + len(others)
    buffer = np.empty((n_all, min(CHUNK, size)))
    products = np.zeros((n_left, len(others) or n_left))
    squares = np.zeros(n_all)
    for start in range(0, size, CHUNK):
        stop = min(start + CHUNK, size)
        block = buffer if stop - start == buffer.shape[1] else np.empty((n_all, stop - start))
        for row, vector in zip(block, (*left, *others), strict=True):
            row[:] = vector[start:stop]
        if root:
            np.sqrt(block, out=block)
        if centred:
            block -= block.mean(axis=0)
        if right is None:
            products += np.dot(block, block.T)  # its own transpose: half the work
        else:
            products += np.dot(block[:n_left], block[n_left:].T)
            squares += np.einsum("ij,ij->i", block, block)
    if right is None:
        squares = np.diagonal(products).copy()
        return Products(products, squares, squares)
    return Products(products, squares[:n_left], squares[n_left:])
