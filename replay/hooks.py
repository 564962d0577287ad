"""The hooks of one capture: what a forward has given so far, and how it ends early."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from replay.pooling import check_mask, pool
from store.errors import InvalidInput, InvalidLayer, UnknownLayer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from torch import nn

    from replay.layers import LayerSpec, Site

__all__ = ["ForwardPass", "returned_tensor", "swallowing_stops"]


class _Stop(BaseException):
    """Ends a forward; no error, so that no ``except Exception`` of a model can take it for one."""


@contextmanager
def swallowing_stops(root: nn.Module) -> Iterator[None]:
    """Let calls of ``root`` return None when they are stopped, so that the code after them goes on."""
    # around the method, not the context: there the first stop would skip the rest of the caller's block
    forward = root.forward
    patched = vars(root).get("forward")

    def stoppable(*args: Any, **kwargs: Any) -> Any:
        try:
            return forward(*args, **kwargs)
        except _Stop:
            return None

    root.forward = stoppable
    try:
        yield
    finally:
        if patched is None:
            del root.forward
        else:
            root.forward = patched


class ForwardPass:
    """What the forward under way has given so far; it becomes a batch when it is complete."""

    def __init__(
        self,
        root: nn.Module,
        batches: list[dict[LayerSpec, torch.Tensor]],
        specs: Mapping[LayerSpec, Site],
        *,
        detach: bool,
        stop: bool,
        mask: torch.Tensor | None,
    ) -> None:
        self._root = root
        self._batches = batches
        self._specs = specs
        self._detach = detach
        self._stop = stop
        self._given_mask = mask
        self._mask: torch.Tensor | None = None
        self._seen: dict[LayerSpec, torch.Tensor] = {}
        self._running = False
        self._ever = False

    def begin(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = self._given_mask
        if mask is None:
            mask = _argument(self._root, "attention_mask", args, kwargs)
        self._mask = None if mask is None else check_mask(mask)
        self._seen = {}
        self._running = self._ever = True

    def stand(self, spec: LayerSpec, site: Site) -> torch.utils.hooks.RemovableHandle:
        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._take(spec, site, lambda: _first_argument(args, kwargs))

        def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            self._take(spec, site, lambda: returned_tensor(output, site.tensor))

        if site.tensor == "input":
            return site.module.register_forward_pre_hook(before, with_kwargs=True)
        return site.module.register_forward_hook(after)

    def end(self, *_: Any) -> None:
        if not self._running:  # stopped, and complete
            return
        self._running = False
        missed = [str(spec) for spec in self._specs if spec not in self._seen]
        if missed:
            raise UnknownLayer(f"a forward of {type(self._root).__name__} never called {', '.join(missed[:5])}")
        self._batches.append(self._seen)

    def _take(self, spec: LayerSpec, site: Site, value: Callable[[], torch.Tensor | None]) -> None:
        if not self._ever:
            name = type(self._root).__name__
            raise InvalidInput(f"{spec} was called without a forward of {name}: call the model given to capture()")
        if not self._running or spec in self._seen:
            return
        tensor = value()
        if tensor is None:
            hint = "no hidden_states in what it returns" if site.tensor == "states" else "no tensor there"
            raise InvalidLayer(f"{spec}: {type(site.module).__name__} has {hint}")
        try:
            self._seen[spec] = pool(tensor.detach() if self._detach else tensor, self._mask, reduce=spec.reduce)
        except InvalidLayer as error:
            raise InvalidLayer(f"{spec} {error}") from None
        # a root that is a layer itself has run to its end already
        if self._stop and len(self._seen) == len(self._specs) and site.module is not self._root:
            self.end()
            raise _Stop


def returned_tensor(output: Any, what: str = "output") -> torch.Tensor | None:
    """Return the tensor of what a module returned that `replay.layers.Site` speaks of; None where there is none."""
    import torch

    if what == "states":
        states = output.get("hidden_states") if isinstance(output, Mapping) else getattr(output, "hidden_states", None)
        return _first_tensor(states[-1:]) if states else None
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, Mapping):
        last = output.get("last_hidden_state")
        return _first_tensor(output.values()) if last is None and what == "output" else last
    return _first_tensor(output) if isinstance(output, tuple | list) else None


def _argument(model: nn.Module, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if name in kwargs or not args:
        return kwargs.get(name)
    names = list(inspect.signature(type(model).forward).parameters)[1:]
    return dict(zip(names, args, strict=False)).get(name)


def _first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    return _first_tensor((*args, kwargs.get("hidden_states"), *kwargs.values()))


def _first_tensor(values: Any) -> torch.Tensor | None:
    import torch

    return next((value for value in values if isinstance(value, torch.Tensor)), None)
