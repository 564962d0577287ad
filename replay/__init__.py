"""Replay a model's checkpoints through one probe set and ask what the representation did during training."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replay.analyses.spread import analyze_spread
    from replay.capture import ActivationExtractor
    from replay.geometry.gauge import DiffusionGauge
    from replay.layers import LayerSpec, resolve_layer
    from replay.opening import open_store
    from store.errors import ReplayError

__all__ = [
    "ActivationExtractor",
    "DiffusionGauge",
    "LayerSpec",
    "ReplayError",
    "analyze_spread",
    "open_store",
    "resolve_layer",
]

_HOMES = {
    "ActivationExtractor": "replay.capture",
    "DiffusionGauge": "replay.geometry.gauge",
    "LayerSpec": "replay.layers",
    "ReplayError": "store.errors",
    "analyze_spread": "replay.analyses.spread",
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
