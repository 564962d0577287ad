"""Replay a model's checkpoints through one probe set and ask what the representation did during training."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replay.analyses.embedding import analyze_embedding
    from replay.analyses.merging import merge_operators
    from replay.analyses.multislice import analyze_multislice
    from replay.analyses.path import analyze_path
    from replay.analyses.selection import Choice
    from replay.analyses.similarity import analyze_similarity
    from replay.analyses.spectrum import analyze_spectrum
    from replay.analyses.spread import analyze_spread
    from replay.capture import ActivationExtractor
    from replay.geometry.gauge import DiffusionGauge
    from replay.geometry.knn_gauge import KnnGauge
    from replay.geometry.measures import find_measure
    from replay.geometry.merging import DiffusionMerging
    from replay.layers import LayerSpec, resolve_layer
    from replay.opening import open_store
    from store.errors import ReplayError

__all__ = [
    "ActivationExtractor",
    "Choice",
    "DiffusionGauge",
    "DiffusionMerging",
    "KnnGauge",
    "LayerSpec",
    "ReplayError",
    "analyze_embedding",
    "analyze_multislice",
    "analyze_path",
    "analyze_similarity",
    "analyze_spectrum",
    "analyze_spread",
    "find_measure",
    "merge_operators",
    "open_store",
    "resolve_layer",
]

_HOMES = {
    "ActivationExtractor": "replay.capture",
    "Choice": "replay.analyses.selection",
    "DiffusionGauge": "replay.geometry.gauge",
    "DiffusionMerging": "replay.geometry.merging",
    "KnnGauge": "replay.geometry.knn_gauge",
    "LayerSpec": "replay.layers",
    "ReplayError": "store.errors",
    "analyze_embedding": "replay.analyses.embedding",
    "analyze_multislice": "replay.analyses.multislice",
    "analyze_path": "replay.analyses.path",
    "analyze_similarity": "replay.analyses.similarity",
    "analyze_spectrum": "replay.analyses.spectrum",
    "analyze_spread": "replay.analyses.spread",
    "find_measure": "replay.geometry.measures",
    "merge_operators": "replay.analyses.merging",
    "open_store": "replay.opening",
    "resolve_layer": "replay.layers",
}


def __getattr__(name: str) -> Any:
    # torch and xarray are imported by what needs them, not by `import replay`.
    if name not in _HOMES:
        raise AttributeError(f"module 'replay' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
