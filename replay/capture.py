"""Activations out of a model while it runs: one call of it, or a whole probe set."""

from __future__ import annotations

import copy
import inspect
from concurrent.futures import as_completed
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from replay.anatomy import find_anatomy
from replay.batches import Batch, pad_batch, plan_array_batches, plan_batches
from replay.hooks import ForwardPass, swallowing_stops
from replay.layers import LayerSpec, ResolvedLayer, find_sites
from replay.threads import side_by_side
from store.errors import InvalidInput, InvalidLayer, InvalidProbes, ReplayError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    import torch
    from torch import nn

    _Values = dict[LayerSpec, torch.Tensor]

__all__ = ["ActivationExtractor", "replay_arrays", "replay_probes", "try_arrays"]


class ActivationExtractor:
    """Captures what some layers of a model compute, one or more batches long.

    A module that is called more than once in a forward gives its first call. Calls outside a forward of the model (the
    recomputation of gradient checkpointing) are not captured.

    Parameters
    ----------
    specs
        The layers, each a `LayerSpec` or its text; several may stand on one module.
    detach
        Whether to cut the activations out of the graph; with False gradients flow through them.
    stop
        Whether to end each forward as soon as every layer has been seen; the call of the model then returns None.

    Raises
    ------
    InvalidLayer
        A spec that cannot be read.
    """

    def __init__(self, specs: Sequence[LayerSpec | str], *, detach: bool = True, stop: bool = False) -> None:
        parsed = (LayerSpec.parse(spec) if isinstance(spec, str) else spec for spec in specs)
        self.specs = tuple(dict.fromkeys(parsed))
        if not self.specs:
            raise InvalidInput("no layer to capture: give at least one, such as blocks[-1]")
        self._detach = detach
        self._stop = stop
        self._batches: list[dict[LayerSpec, torch.Tensor]] = []

    @contextmanager
    def capture(
        self, model: nn.Module, *, attention_mask: torch.Tensor | None = None, root: nn.Module | None = None
    ) -> Iterator[ActivationExtractor]:
        """Capture every forward of ``model`` within the context; train and eval mode stay as they are.

        Parameters
        ----------
        model
            What the paths of the specs are relative to.
        attention_mask
            (text, token), for every forward in the context; without it, the ``attention_mask`` that each forward is
            given; without that too, every token counts.
        root
            The part of the model that will be called, where that is not the model itself.

        Raises
        ------
        InvalidInput
            A text without a token that counts; a layer called before any forward of ``root``.
        InvalidLayer
            A layer whose values are no activations of tokens, or which has no hidden states.
        UnknownLayer
            A path that the model has not; a layer that a forward never came to.
        """
        called = model if root is None else root
        sites = find_sites(model, self.specs)
        forward = ForwardPass(called, self._batches, sites, detach=self._detach, stop=self._stop, mask=attention_mask)
        with ExitStack() as cleanup:
            cleanup.callback(called.register_forward_pre_hook(forward.begin, with_kwargs=True).remove)
            for spec, site in sites.items():
                cleanup.callback(forward.stand(spec, site).remove)
            # last, so that a layer that is the root itself has been taken by then
            cleanup.callback(called.register_forward_hook(forward.end).remove)
            if self._stop:
                cleanup.enter_context(swallowing_stops(called))
            yield self

    def get_activations(self, clear: bool = True) -> dict[LayerSpec, torch.Tensor]:
        """Return what was captured, batches one after another.

        Parameters
        ----------
        clear
            Whether to forget it.

        Returns
        -------
        dict of LayerSpec to torch.Tensor
            (text, feature), or (token, feature) for ``all``; float32, or float64 from a float64 model. Empty if no
            forward has run.

        Raises
        ------
        InvalidLayer
            A layer whose number of features changed between batches.
        """
        import torch

        batches = list(self._batches)
        if clear:
            self._batches.clear()
        if not batches:
            return {}
        for spec in self.specs:
            widths = list(dict.fromkeys(tuple(batch[spec].shape[1:]) for batch in batches))
            if len(widths) > 1:
                raise InvalidLayer(f"{spec} gave {widths[0]} features in one batch and {widths[1]} in another")
        return {spec: torch.cat([batch[spec] for batch in batches]) for spec in self.specs}

    def extract_once(
        self, model: nn.Module, *args: Any, attention_mask: torch.Tensor | None = None, **inputs: Any
    ) -> dict[LayerSpec, torch.Tensor]:
        """Run ``model`` once in eval mode and return its activations; what was captured before is forgotten.

        Parameters
        ----------
        model
            The model; each of its modules is afterwards in the mode it was in.
        args, inputs
            What the model is called with.
        attention_mask
            (text, token); also given to the model if its forward takes one.

        Returns
        -------
        dict of LayerSpec to torch.Tensor
            As `get_activations`.

        Raises
        ------
        InvalidInput, InvalidLayer, UnknownLayer
            As `capture`.
        """
        import torch

        if attention_mask is not None and _accepts(model, "attention_mask"):
            inputs["attention_mask"] = attention_mask
        self._batches.clear()
        with (
            _keeping_modes(model),
            self.capture(model, attention_mask=attention_mask),
            torch.no_grad() if self._detach else nullcontext(),
        ):
            model.eval()
            model(*args, **inputs)
        return self.get_activations()


def replay_probes(
    model: nn.Module,
    token_ids: Sequence[Sequence[int]],
    layers: Sequence[ResolvedLayer],
    *,
    batch_tokens: int = 512,
    pad_token_id: int = 0,
    padding_side: str = "right",
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
    """Run every probe through ``model`` and return what ``layers`` computed; the same call gives the same bits.

    On a CPU batches run side by side, one on each of torch's threads; the bits do not depend on how many those are, as
    long as there are no more of them than batches.

    The model runs in eval mode and inference mode, without its head and without a key-value cache, no further than the
    deepest layer asked for; of an encoder-decoder model only the encoder runs.

    Parameters
    ----------
    model
        A base model or one with a head, on ``device``.
    token_ids
        The tokens of each probe.
    layers
        From `expand_layers`.
    batch_tokens
        The most tokens in a batch, padding included.
    pad_token_id
        What batches are padded with.
    padding_side
        ``right`` or ``left``; results agree to rounding.
    device
        Where the model is.
    progress
        Called after each batch with the number of probes in it.

    Returns
    -------
    dict of str to numpy.ndarray
        By the text of each spec, in float32: (probe, feature), or for ``all`` (token, feature), probe after probe.

    Raises
    ------
    InvalidInput
        A probe without tokens, a model that is elsewhere or cannot take the padding, an unknown padding side.
    InvalidProbes
        No probes at all; a token outside the vocabulary; a probe longer than the positions of the model.
    InvalidLayer, UnknownLayer
        As `ActivationExtractor.capture`; a layer that does not give one row a probe, or for ``all`` one a token.
    """
    import numpy as np

    if not token_ids:
        raise InvalidProbes("no probes to replay")
    stack = find_anatomy(model).stack
    _check_vocabulary(stack, token_ids, pad_token_id)
    _check_device(stack, device)
    lengths = [len(tokens) for tokens in token_ids]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    batches = plan_batches(lengths, batch_tokens)

    def call(root: nn.Module, indices: list[int]) -> None:
        batch = pad_batch([token_ids[i] for i in indices], pad_token_id=pad_token_id, padding_side=padding_side)
        _run(root, batch, padding_side, device)

    def rows_of(reduce: str, indices: list[int]) -> np.ndarray:
        if reduce == "all":
            return np.concatenate([np.arange(starts[i], starts[i + 1]) for i in indices])
        return np.array(indices)

    n_rows = {"all": int(starts[-1])}
    return _replay(
        model,
        layers,
        batches,
        call=call,
        rows_of=rows_of,
        n_rows=lambda reduce: n_rows.get(reduce, len(lengths)),
        device=device,
        progress=progress,
    )


def replay_arrays(
    model: nn.Module,
    values: np.ndarray,
    layers: Sequence[ResolvedLayer],
    *,
    batch_tokens: int = 512,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
    """Run every array through ``model`` as its first argument and return what ``layers`` computed.

    All else is as in `replay_probes`. Floats are given the type of the model's parameters, integers stay as they are.

    Parameters
    ----------
    model
        Any model, on ``device``.
    values
        (probe, …).
    layers
        From `expand_layers`; none that is reduced by ``all``.
    batch_tokens
        The size of a batch, as `replay.batches.plan_array_batches` has it.
    device, progress
        As in `replay_probes`.

    Returns
    -------
    dict of str to numpy.ndarray
        By the text of each spec, in float32: (probe, feature).

    Raises
    ------
    InvalidInput
        A model that is elsewhere.
    InvalidProbes
        No probes at all, or arrays that the model does not take.
    InvalidLayer, UnknownLayer
        As `ActivationExtractor.capture`; a layer that does not give one row a probe.
    """
    import numpy as np

    if not len(values):
        raise InvalidProbes("no probes to replay")
    _check_device(find_anatomy(model).stack, device)
    return _replay(
        model,
        layers,
        plan_array_batches(values, batch_tokens),
        call=lambda root, indices: _feed(root, values[indices]),
        rows_of=lambda _, indices: np.array(indices),
        n_rows=lambda _: len(values),
        device=device,
        progress=progress,
    )


def try_arrays(model: nn.Module, values: np.ndarray, layers: Sequence[ResolvedLayer]) -> dict[str, int]:
    """Run two of the arrays through ``model`` and return how many features each of ``layers`` then has.

    On the meta device nothing is computed and shapes alone are found out; a model that cannot be run there gives 0.

    Parameters
    ----------
    model
        On any device, with any weights.
    values, layers
        As for `replay_arrays`.

    Raises
    ------
    InvalidProbes, InvalidLayer, UnknownLayer
        As `replay_arrays`.
    """
    import torch

    root = find_anatomy(model).stack
    few = values[:2]
    extractor = ActivationExtractor([layer.spec for layer in layers], stop=True)
    with _keeping_modes(model), extractor.capture(model, root=root), torch.inference_mode():
        model.eval()
        try:
            _feed(root, few)
        except NotImplementedError:
            if all(parameter.is_meta for parameter in root.parameters()):
                return {str(layer.spec): 0 for layer in layers}
            raise
    captured = extractor.get_activations()
    for spec, activations in captured.items():
        _check_rows(spec, activations, len(few))
    return {str(spec): activations.shape[1:].numel() for spec, activations in captured.items()}


def _replay(
    model: nn.Module,
    layers: Sequence[ResolvedLayer],
    batches: Sequence[list[int]],
    *,
    call: Callable[[nn.Module, list[int]], None],
    rows_of: Callable[[str, list[int]], np.ndarray],
    n_rows: Callable[[str], int],
    device: str,
    progress: Callable[[int], None] | None,
) -> dict[str, np.ndarray]:
    """Run the probes batch by batch and put what ``layers`` give where it belongs.

    ``call`` runs the probes of some indices through a model; of a reduction ``n_rows`` tells how many rows there are,
    ``rows_of`` which of them the probes of some indices fill.
    """
    import numpy as np
    import torch

    results: dict[str, np.ndarray] = {}

    def run(root: nn.Module, extractor: ActivationExtractor, indices: list[int]) -> _Values:
        with torch.inference_mode():
            call(root, indices)
        return extractor.get_activations()

    with ExitStack() as cleanup:
        replicas = []
        for replica in _replicas(model, min(torch.get_num_threads(), len(batches)) if device == "cpu" else 1):
            root = find_anatomy(replica).stack
            extractor = ActivationExtractor([layer.spec for layer in layers], stop=True)
            cleanup.enter_context(_keeping_modes(replica))
            cleanup.enter_context(extractor.capture(replica, root=root))
            replica.eval()
            replicas.append(partial(run, root, extractor))
        for indices, captured in cleanup.enter_context(_spread_over(replicas, batches)):
            for spec, values in captured.items():
                rows = rows_of(spec.reduce, indices)
                _check_rows(spec, values, len(rows))
                shape = (n_rows(spec.reduce), *values.shape[1:])
                result = results.setdefault(str(spec), np.empty(shape, dtype=np.float32))
                result[rows] = values.float().cpu().numpy()
            if progress is not None:
                progress(len(indices))
    return results


def _check_rows(spec: LayerSpec, values: torch.Tensor, n_rows: int) -> None:
    if len(values) != n_rows:
        unit = "token" if spec.reduce == "all" else "probe"
        raise InvalidLayer(f"{spec} gives {len(values)} rows for {n_rows} {unit}s: it has not one a {unit}")


def _replicas(model: nn.Module, count: int) -> list[nn.Module]:
    """Return ``model`` and copies of its modules that share its weights."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return [model, *(copy.deepcopy(model, dict(shared)) for _ in range(count - 1))]


@contextmanager
def _spread_over(
    replicas: Sequence[Callable[[list[int]], _Values]], batches: Sequence[list[int]]
) -> Iterator[Iterator[tuple[list[int], _Values]]]:
    """Hold the batches with what they give, as it comes, one thread a replica.

    So the bits of a batch do not depend on how many threads there are.
    """
    if len(replicas) == 1:
        yield ((indices, replicas[0](indices)) for indices in batches)
        return
    free: SimpleQueue[Callable[[list[int]], _Values]] = SimpleQueue()
    for replica in replicas:
        free.put(replica)

    def run(indices: list[int]) -> tuple[list[int], _Values]:
        replica = free.get()
        try:
            return indices, replica(indices)
        finally:
            free.put(replica)

    with side_by_side(len(replicas)) as pool:
        # the longest first: the last to end is then a short one
        yield (done.result() for done in as_completed([pool.submit(run, indices) for indices in reversed(batches)]))


def _run(stack: nn.Module, batch: Batch, padding_side: str, device: str) -> None:
    name = type(stack).__name__
    padded = bool((batch.attention_mask == 0).any())
    inputs: dict[str, Any] = {"input_ids": batch.input_ids.to(device)}
    if _accepts(stack, "use_cache"):
        inputs["use_cache"] = False
    if _accepts(stack, "attention_mask"):
        inputs["attention_mask"] = batch.attention_mask.to(device)
    elif padded:
        raise InvalidInput(f"{name} takes no attention mask, so probes cannot share a padded batch: set batch_tokens=1")
    if padded and padding_side == "left":
        tables = _position_tables(stack)
        if _accepts(stack, "position_ids"):
            # RoBERTa and its kin count positions from behind the row that their table keeps for padding
            pad = next((table.padding_idx for table in tables if table.padding_idx is not None), -1)
            positions = batch.attention_mask.cumsum(dim=1) + pad
            inputs["position_ids"] = positions.clamp(min=max(pad, 0)).to(device)
        elif tables:
            raise InvalidInput(
                f"{name} takes no position_ids, so padding on the left would shift them: pad on the right"
            )
    try:
        stack(**inputs)
    except IndexError as error:  # tokens have been checked against the vocabulary, so these are positions
        n_tokens = batch.input_ids.shape[1]
        raise InvalidProbes(
            f"{name} has no positions for a probe of {n_tokens} tokens: shorten it ({error})"
        ) from error


def _feed(stack: nn.Module, values: np.ndarray) -> None:
    """Call ``stack`` with arrays, on the device of its parameters and in their type."""
    import torch

    weight = next((p for p in stack.parameters() if p.is_floating_point()), torch.empty(0))
    given = torch.from_numpy(values).to(weight.device)
    try:
        stack(given.to(weight.dtype) if given.is_floating_point() else given)
    except (ReplayError, torch.OutOfMemoryError, NotImplementedError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        hint = "" if given.is_floating_point() else " (integers are given as they are: save floats if they are no ids)"
        shape = ", ".join(["probe", *map(str, values.shape[1:])])
        raise InvalidProbes(
            f"{type(stack).__name__} does not take arrays of shape ({shape}) and type {values.dtype}{hint}: "
            f"{type(error).__name__}: {reason}"
        ) from error


def _position_tables(stack: nn.Module) -> list[nn.Embedding]:
    from torch import nn

    return [
        module
        for name, module in stack.named_modules()
        if isinstance(module, nn.Embedding) and "position" in name.rpartition(".")[2]
    ]


def _check_vocabulary(stack: nn.Module, token_ids: Sequence[Sequence[int]], pad_token_id: int) -> None:
    n_tokens = getattr(getattr(stack, "config", None), "vocab_size", None)
    if not isinstance(n_tokens, int):
        return
    if not 0 <= pad_token_id < n_tokens:
        raise InvalidInput(f"pad_token_id {pad_token_id} is outside the vocabulary of {n_tokens} tokens")
    for index, tokens in enumerate(token_ids):
        wrong = [token for token in (min(tokens, default=0), max(tokens, default=0)) if not 0 <= token < n_tokens]
        if wrong:
            raise InvalidProbes(
                f"probe {index} holds token {wrong[0]}, but {type(stack).__name__} knows 0 to {n_tokens - 1}: "
                "tokenise the probes with the tokenizer of this model"
            )


def _check_device(stack: nn.Module, device: str) -> None:
    import torch

    wanted = torch.device(device)
    for parameter in stack.parameters():
        found = parameter.device
        if found.type != wanted.type or wanted.index not in (None, found.index):
            raise InvalidInput(f"the model is on {found}, not on {device}: load it there")


def _accepts(model: nn.Module, name: str) -> bool:
    """Return whether the forward of ``model`` names an argument ``name``."""
    return name in inspect.signature(type(model).forward).parameters


@contextmanager
def _keeping_modes(model: nn.Module) -> Iterator[None]:
    """Give every module of ``model`` its own train or eval mode back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
