"""What the checkpoints of one source share: the layers of each architecture, and what their models are fed."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from replay import layers as layers_module
from replay.feeds import TOKENS, ArrayFeed, Feed, TokenFeed
from replay.layers import LayerSpec, ResolvedLayer
from replay.probes import ProbeSet
from replay.sources.files import CONFIG
from store.errors import CheckpointError, InvalidLayer, UnknownLayer, UnknownRevision
from store.keys import content_key, n_blocks_key
from store.segments import scratch_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from replay.plan import IngestRequest, Job
    from replay.sources import Source
    from store.catalog import Store
    from store.commits import RevisionRecord

__all__ = ["Architecture", "Preparation"]


@dataclass(frozen=True)
class Architecture:
    """What all checkpoints with one configuration, or of one factory, have in common."""

    layers: tuple[ResolvedLayer, ...]
    """The layers asked for."""
    width: int
    """Features of a block; 0 where no configuration says it."""
    positions: int | None
    """The most tokens it can take, where there is such a limit."""
    input: str | None
    """What transformers calls its main input (``input_ids``, ``pixel_values``); None for a model of a factory."""
    trial: Callable[[], nn.Module]
    """Builds the model without the weights of a checkpoint."""


class Preparation:
    """Settles the revisions of one source before any weights are fetched."""

    def __init__(self, store: Store, source: Source, request: IngestRequest, capture: str) -> None:
        self.store, self.source, self.request = store, source, request
        self.scratch = store.root / "checkpoints" / scratch_name()
        self.feed: Feed
        if isinstance(request.probes, ProbeSet):
            self.feed = TokenFeed(
                store, source, request.probes, capture=capture, max_length=request.max_length, scratch=self.scratch
            )
        else:
            self.feed = ArrayFeed(store, source, request.probes, capture=capture)
        self.notes = self.feed.notes
        self._architectures: dict[str, Architecture] = {}
        self._broken: dict[str, str] = {}
        self._wanted: dict[tuple[str, tuple[ResolvedLayer, ...]], Callable[[str], bool]] = {}
        self._shares: dict[tuple[str, tuple[ResolvedLayer, ...]], int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)

    def complete(self, record: RevisionRecord, listed: Sequence[RevisionRecord]) -> RevisionRecord:
        """Return ``record`` with its tokenizer settled, its layers resolved and what its model is fed stored."""
        if record.error or record.config is None:
            return record
        try:
            return self.feed.settle(record, listed, self.architecture(record))
        except (CheckpointError, UnknownRevision) as error:
            return replace(record, error=str(error))

    def architecture(self, record: RevisionRecord) -> Architecture:
        """Return what is known of the architecture of a checkpoint, finding it out once for each.

        Raises
        ------
        CheckpointError
            If its configuration describes no model.
        InvalidLayer, UnknownLayer
            If it has no such layers.
        """
        config = str(record.config)
        if config in self._broken:
            raise CheckpointError(self._broken[config])
        if config not in self._architectures:
            try:
                self._architectures[config] = self._find_architecture(record)
            except CheckpointError as error:
                self._broken[config] = str(error)
                raise
        return self._architectures[config]

    def wanted(self, record: RevisionRecord, layers: Sequence[ResolvedLayer]) -> Callable[[str], bool] | None:
        """Return what tells the tensors that ``layers`` need, or None where whole files have to be fetched."""
        from replay.models import needed_weights

        if self.source.kind != "hub":
            return None
        if not any(name.endswith(".safetensors") for name in record.files):
            self.notes.append(f"{self.source.run} {record.name} has no safetensors and is fetched whole")
            return None
        key = (str(record.config), tuple(layers))
        if key not in self._wanted:
            self._wanted[key] = needed_weights(self._skeleton(record), layers)
        return self._wanted[key]

    def bytes_to_fetch(self, job: Job) -> int:
        """Return the bytes of a download; of one in part as many as the first like it would take."""
        if job.wanted is None:
            return self.source.bytes_to_fetch(job.record, job.names)
        key = (str(job.record.config), job.missing.layers)
        if key not in self._shares:
            self._shares[key] = self.source.bytes_to_fetch(
                job.record, job.names, wanted=job.wanted, scratch=self.scratch
            )
        return self._shares[key]

    def _find_architecture(self, record: RevisionRecord) -> Architecture:
        request = self.request
        key = content_key(
            "layers",
            config=str(record.config),
            layers=request.layers,
            reduce=request.reduce,
            version=layers_module.VERSION,
        )
        known = self.store.index.fact(key)
        if known is None:
            known = self._resolve(record)
            self.store.index.remember(key, known)
        return Architecture(
            layers=tuple(ResolvedLayer(LayerSpec.parse(spec), module) for spec, module in known["layers"]),
            width=known["width"],
            positions=known["positions"],
            input=known.get("input", TOKENS),  # what was remembered before any other input was known
            trial=partial(self._skeleton, record) if request.factory is None else request.factory.build,
        )

    def _resolve(self, record: RevisionRecord) -> dict[str, Any]:
        from replay.layers import expand_layers, n_blocks

        model = self._skeleton(record)
        try:
            layers = expand_layers(model, self.request.layers, reduce=self.request.reduce)
        except (InvalidLayer, UnknownLayer) as error:
            error.add_note(f"in {self.source.run} {record.name}")
            raise
        self.store.index.remember(n_blocks_key(str(record.config)), {"n_blocks": n_blocks(model)})
        config = None if self.request.factory else model.config
        return {
            "layers": [[str(layer.spec), layer.module] for layer in layers],
            "width": int(getattr(config, "hidden_size", 0) or 0),
            "positions": None if config is None else _n_positions(config),
            "input": None if config is None else model.main_input_name,
        }

    def _skeleton(self, record: RevisionRecord) -> Any:
        from replay.models import layer_model

        if self.request.factory is not None:
            return self.request.factory.skeleton()
        with self.source.fetch(record, [CONFIG], self.scratch) as folder:
            return layer_model(folder)


def _n_positions(config: Any) -> int | None:
    """Return how many tokens a model can take, or None where its config names no limit."""
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    # RoBERTa and its kin count positions from behind the padding token's.
    from_padding = any(name in config.model_type for name in ("roberta", "camembert", "longformer", "xmod", "mpnet"))
    return limit - 2 if from_padding else limit
