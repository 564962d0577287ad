"""All measures by name: what spread, similarity matrices, paths and embeddings can be asked to use."""

from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from replay.geometry import contract
from replay.geometry.distances import Frobenius, FrobeniusNormalized, Hellinger, JensenShannon, Spectral, Subspace
from replay.geometry.similarity import (
    CKA,
    SVCCA,
    BiasedCKA,
    KendallRSA,
    MutualKNN,
    PearsonRSA,
    Procrustes,
    SpearmanRSA,
)
from store.errors import InvalidInput

__all__ = ["MEASURES", "Measure", "find_measure"]

Measure = contract.Measure[Any]
"""Any of them."""

MEASURES: dict[str, type[Measure]] = {
    measure.name: measure
    for measure in (
        Frobenius,
        FrobeniusNormalized,
        Hellinger,
        JensenShannon,
        Spectral,
        Subspace,
        CKA,
        BiasedCKA,
        Procrustes,
        PearsonRSA,
        SpearmanRSA,
        KendallRSA,
        SVCCA,
        MutualKNN,
    )
}
"""Those of operators, then those of activations."""


def find_measure(name: str, **parameters: Any) -> Measure:
    """Make a measure from its name and, where they are not to be the default, its parameters.

    Raises
    ------
    InvalidInput
        If there is no such measure, or it has no such parameter, or not with that value.
    """
    if name not in MEASURES:
        near = get_close_matches(name, MEASURES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InvalidInput(f"there is no measure {name!r}: {hint}There are {', '.join(MEASURES)}")
    known = [field.name for field in fields(MEASURES[name])]
    unknown = [given for given in parameters if given not in known]
    if unknown:
        raise InvalidInput(f"{name} has no parameter {unknown[0]}; it has {', '.join(known) or 'none'}")
    return MEASURES[name](**parameters)
