"""Replay a model's checkpoints through one probe set and ask what the representation did during training."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replay.analyses.correlation import analyze_correlation
    from replay.analyses.dimension import analyze_dimension
    from replay.analyses.embedding import analyze_embedding
    from replay.analyses.floors import precision_floor
    from replay.analyses.jumps import analyze_jumps
    from replay.analyses.loss import probe_loss
    from replay.analyses.merging import merge_operators
    from replay.analyses.multislice import analyze_multislice
    from replay.analyses.neurons import analyze_neurons
    from replay.analyses.path import analyze_path
    from replay.analyses.phases import analyze_phases
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
    "analyze_correlation",
    "analyze_dimension",
    "analyze_embedding",
    "analyze_jumps",
    "analyze_multislice",
    "analyze_neurons",
    "analyze_path",
    "analyze_phases",
    "analyze_similarity",
    "analyze_spectrum",
    "analyze_spread",
    "find_measure",
    "merge_operators",
    "open_store",
    "precision_floor",
    "probe_loss",
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
    "analyze_correlation": "replay.analyses.correlation",
    "analyze_dimension": "replay.analyses.dimension",
    "analyze_embedding": "replay.analyses.embedding",
    "analyze_jumps": "replay.analyses.jumps",
    "analyze_multislice": "replay.analyses.multislice",
    "analyze_neurons": "replay.analyses.neurons",
    "analyze_path": "replay.analyses.path",
    "analyze_phases": "replay.analyses.phases",
    "analyze_similarity": "replay.analyses.similarity",
    "analyze_spectrum": "replay.analyses.spectrum",
    "analyze_spread": "replay.analyses.spread",
    "find_measure": "replay.geometry.measures",
    "merge_operators": "replay.analyses.merging",
    "open_store": "replay.opening",
    "precision_floor": "replay.analyses.floors",
    "probe_loss": "replay.analyses.loss",
    "resolve_layer": "replay.layers",
}


def __getattr__(name: str) -> Any:
    # torch and xarray are imported by what needs them, not by `import replay`.
    if name not in _HOMES:
        raise AttributeError(f"module 'replay' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
