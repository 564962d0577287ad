"""What an ingest makes of one checkpoint, and how much of that the store lacks."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import select

from replay.layers import ResolvedLayer
from replay.loss import LOSS
from replay.loss import RECIPE as LOSS_RECIPE
from replay.weight_ranks import RECIPE as RANKS_RECIPE
from replay.weight_ranks import WEIGHTS
from store.catalog import Store
from store.keys import canonical
from store.measurements import find_measurements
from store.schema import Activation
from store.segments import has_segment

__all__ = ["Work", "remaining"]


@dataclass(frozen=True)
class Work:
    """What is to be made of one checkpoint, or of it what the store lacks."""

    replay: str
    """Its replay key."""
    moved_replay: str
    """The replay key of its weights moved within their rounding."""
    weights: str
    """Its weights digest."""
    layers: tuple[ResolvedLayer, ...]
    """Layers to capture."""
    moved_layers: tuple[ResolvedLayer, ...] = ()
    """Layers to capture with moved weights."""
    loss: bool = False
    """Whether to measure its language-model loss on the probes."""
    weight_ranks: bool = False
    """Whether to measure the stable rank of its weight matrices."""

    @property
    def n_passes(self) -> int:
        """How many times every probe is run through a model."""
        return bool(self.layers) + bool(self.moved_layers) + self.loss

    def __bool__(self) -> bool:
        return bool(self.layers or self.moved_layers or self.loss or self.weight_ranks)


def remaining(store: Store, works: Sequence[Work], *, verified: bool) -> list[Work]:
    """Return what is still to be done of each; a layer whose segment somebody removed is not stored.

    With ``verified`` neither is one that comes from a partial fetch.
    """
    keys = {key for work in works for key in (work.replay, work.moved_replay)}
    stored = _stored_layers(store, keys, verified=verified)
    with_loss = {
        point.replay
        for point in find_measurements(
            store, canonical(LOSS_RECIPE), replays={work.replay for work in works if work.loss}, layer=LOSS
        )
    }
    with_ranks = {
        point.weights
        for point in find_measurements(
            store, canonical(RANKS_RECIPE), weights={work.weights for work in works if work.weight_ranks}, layer=WEIGHTS
        )
    }
    return [
        replace(
            work,
            layers=tuple(layer for layer in work.layers if str(layer.spec) not in stored[work.replay]),
            moved_layers=tuple(
                layer for layer in work.moved_layers if str(layer.spec) not in stored[work.moved_replay]
            ),
            loss=work.loss and work.replay not in with_loss,
            weight_ranks=work.weight_ranks and work.weights not in with_ranks,
        )
        for work in works
    ]


def _stored_layers(store: Store, keys: Collection[str], *, verified: bool) -> dict[str, set[str]]:
    chosen = select(Activation.replay, Activation.layer, Activation.segment).where(
        Activation.replay.in_(keys), Activation.verified >= int(verified)
    )
    with store.index.read() as session:
        rows = session.execute(chosen).all()
    there = {segment: has_segment(store.root, segment) for segment in {row.segment for row in rows}}
    layers: dict[str, set[str]] = {key: set() for key in keys}
    for row in rows:
        if there[row.segment]:
            layers[row.replay].add(row.layer)
    return layers
