"""What a probe set becomes for the models of one source: token ids of their tokenizer, or the same arrays for all."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from replay.layers import VERSION as LAYERS_VERSION
from replay.sources.files import CONFIG, tokenizer_files
from store.commits import ARRAYS, commit_inputs, commit_tokens
from store.errors import CheckpointError, InvalidLayer, InvalidProbes, UnknownLayer
from store.keys import content_key
from store.schema import Tokenization
from store.segments import has_segment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from replay.arrays import ArrayProbes
    from replay.preparation import Architecture
    from replay.probes import ProbeSet
    from replay.sources import Source
    from store.catalog import Store
    from store.commits import RevisionRecord

__all__ = ["ArrayFeed", "Feed", "TokenFeed"]

TOKENS = "input_ids"
"""What transformers calls the main input of a model of text."""


class Feed(Protocol):
    """Says for each checkpoint of one source what its model is fed, and keeps it in the store."""

    notes: list[str]
    """What the user should know before it starts."""

    def settle(
        self, record: RevisionRecord, listed: Sequence[RevisionRecord], architecture: Architecture
    ) -> RevisionRecord:
        """Return ``record`` with its tokenizer settled, when what its model is fed is stored and found to fit.

        Raises
        ------
        CheckpointError, UnknownRevision
            If this one revision cannot be replayed.
        InvalidProbes, InvalidLayer
            If no revision could be.
        """

    def segment(self, record: RevisionRecord) -> str:
        """Return where what the model of a settled record is fed lies."""

    def n_values(self, record: RevisionRecord, architecture: Architecture) -> dict[str, int]:
        """Return how many numbers each layer of a settled record will give, by its name; 0 where that is unknown."""


class TokenFeed:
    """Token ids, as the tokenizer beside each checkpoint makes them of texts."""

    def __init__(
        self, store: Store, source: Source, probes: ProbeSet, *, capture: str, max_length: int, scratch: Path
    ) -> None:
        self.notes: list[str] = []
        self._store, self._source, self._probes = store, source, probes
        self._capture, self._max_length, self._scratch = capture, max_length, scratch
        self._tokens: dict[str, str] = {}
        self._n_tokens: dict[str, int] = {}
        self._stranger: RevisionRecord | None = None

    def settle(
        self, record: RevisionRecord, listed: Sequence[RevisionRecord], architecture: Architecture
    ) -> RevisionRecord:
        """Return ``record`` with the digest of its tokenizer, whose token ids are then stored."""
        if architecture.input != TOKENS:
            raise InvalidProbes(
                f"{self._source.run} takes {architecture.input} and no text: give array probes, --probes FILE.npy"
            )
        # Files, not the digest, tell whose tokenizer it is: a row that was reused carries what it borrowed.
        lender = record
        if not tokenizer_files(record.files):
            lender = self._lender(listed)
            self.notes.append(f"{self._source.run} {record.name} has no tokenizer; that of {lender.name} is used")
        positions = architecture.positions
        # A reused row already carries the limit behind the colon.
        digest = f"{str(lender.tokenizer).partition(':')[0]}:{positions or ''}"
        if digest not in self._tokens:
            stored, facts = self._stored_tokens(digest), self._store.index.fact(self._counts_key(digest))
            if stored is None or facts is None:
                stored, facts = self._tokenize(lender, digest, positions)
            self._tokens[digest], self._n_tokens[digest] = stored, facts["n_tokens"]
            if facts["n_cut"]:
                limit = min(self._max_length, positions or self._max_length)
                self.notes.append(
                    f"{self._source.run}: {facts['n_cut']} of {len(self._probes)} probes are longer than "
                    f"{limit} tokens and were cut, the first is number {facts['first_cut'] + 1}"
                )
        return replace(record, tokenizer=digest)

    def segment(self, record: RevisionRecord) -> str:
        """Return the segment of its token ids."""
        return self._tokens[str(record.tokenizer)]

    def n_values(self, record: RevisionRecord, architecture: Architecture) -> dict[str, int]:
        """Return what layers as wide as the model would give."""
        rows = {"all": self._n_tokens[str(record.tokenizer)]}
        return {
            str(layer.spec): rows.get(layer.spec.reduce, len(self._probes)) * architecture.width
            for layer in architecture.layers
        }

    def _lender(self, listed: Sequence[RevisionRecord]) -> RevisionRecord:
        """Return the revision whose tokenizer stands in: the last chosen one that has one, else ``main``, else any."""
        chosen = [record for record in listed if tokenizer_files(record.files)]
        if chosen:
            return chosen[-1]
        if self._stranger is None:
            others = sorted(self._source.list_revisions(), key=lambda record: record.name != "main")
            described = (self._source.describe(record) for record in others)
            self._stranger = next((record for record in described if tokenizer_files(record.files)), None)
        if self._stranger is None:
            raise CheckpointError("no tokenizer files (such as tokenizer.json) in this or any other revision")
        return self._stranger

    def _stored_tokens(self, digest: str) -> str | None:
        with self._store.index.read() as session:
            row = session.get(Tokenization, (digest, self._capture))
            return None if row is None or not has_segment(self._store.root, row.tokens) else row.tokens

    def _counts_key(self, digest: str) -> str:
        return content_key("tokens", tokenizer=digest, capture=self._capture)

    def _tokenize(self, lender: RevisionRecord, digest: str, positions: int | None) -> tuple[str, dict[str, int]]:
        from replay.probes import load_tokenizer, tokenize

        with self._source.fetch(lender, [CONFIG, *tokenizer_files(lender.files)], self._scratch) as folder:
            tokenizer = load_tokenizer(folder)
        tokens = tokenize(self._probes, tokenizer, max_length=self._max_length, n_positions=positions)
        counts = {
            "n_tokens": sum(map(len, tokens.ids)),
            "n_cut": len(tokens.cut),
            "first_cut": min(tokens.cut, default=0),
        }
        self._store.index.remember(self._counts_key(digest), counts)
        return commit_tokens(self._store, tokenizer=digest, capture=self._capture, token_ids=tokens.ids), counts


class ArrayFeed:
    """The arrays themselves, for every model the same; a forward of two of them tells whether a model takes them."""

    def __init__(self, store: Store, source: Source, probes: ArrayProbes, *, capture: str) -> None:
        self.notes: list[str] = []
        self._store, self._source, self._probes = store, source, probes
        self._segment = commit_inputs(store, capture=capture, probe_set=probes.digest)
        self._widths: dict[str, dict[str, int]] = {}

    def settle(
        self,
        record: RevisionRecord,
        listed: Sequence[RevisionRecord],  # noqa: ARG002 (no tokenizer is borrowed)
        architecture: Architecture,
    ) -> RevisionRecord:
        """Return ``record`` with what stands for a tokenizer, when its model has been found to take the arrays."""
        config = str(record.config)
        if config not in self._widths:
            if architecture.input == TOKENS:
                raise InvalidProbes(
                    f"{self._source.run} is a model of text and no array can be given for one: give texts, such as "
                    "--probes topics"
                )
            self._widths[config] = self._known_widths(record, architecture)
        return replace(record, tokenizer=ARRAYS)

    def segment(self, record: RevisionRecord) -> str:  # noqa: ARG002 (it is the same for all)
        """Return the segment of the arrays."""
        return self._segment

    def n_values(
        self,
        record: RevisionRecord,
        architecture: Architecture,  # noqa: ARG002 (the trial knows better)
    ) -> dict[str, int]:
        """Return what layers as wide as they were at the trial will give."""
        return {layer: len(self._probes) * width for layer, width in self._widths[str(record.config)].items()}

    def _known_widths(self, record: RevisionRecord, architecture: Architecture) -> dict[str, int]:
        """Return how many features each layer has, from a trial or the memory of one."""
        from replay.capture import try_arrays

        values, layers = self._probes.values, [str(layer.spec) for layer in architecture.layers]
        by_token = [str(layer.spec) for layer in architecture.layers if layer.spec.reduce == "all"]
        if by_token:
            raise InvalidLayer(f"{by_token[0]}: arrays have no tokens of their own: choose another reduction than all")
        key = content_key(
            "widths",
            config=str(record.config),
            layers=layers,
            shape=values.shape[1:],
            dtype=values.dtype.str,
            version=LAYERS_VERSION,
        )
        known = self._store.index.fact(key)
        if known is None:
            try:
                known = try_arrays(architecture.trial(), values, architecture.layers)
            except (InvalidProbes, InvalidLayer, UnknownLayer) as error:
                error.add_note(f"in {self._source.run} {record.name}")
                raise
            self._store.index.remember(key, known)
        return known
