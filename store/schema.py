"""The tables of the index: what the store holds and where it lies.

A **run** has **revisions**; a revision names the digest of its weights and of its tokenizer. A **capture** is one probe
set at one precision. Which token ids a tokenizer makes of a capture is a **tokenization**. A **replay** is one
checkpoint on one list of token ids at one precision; its **activations** and **operators** name, per layer, the segment
that holds them. Two revisions with equal weights lead to the same replay, so nothing is computed twice. What an audit
says of a run or of one of its revisions is a **finding**; what it knows of the weights' values is a **weighing**. One
layer of one replay is a **point**; what a **recipe** makes of a point, or of a pair of points, is a **measurement**, so
that a new checkpoint costs its own row of a distance matrix and nothing again.
"""

from typing import Any

from sqlalchemy import JSON, Float, ForeignKey, Index, Integer, LargeBinary, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = [
    "APPLICATION_ID",
    "SCHEMA_VERSION",
    "Activation",
    "Base",
    "Capture",
    "Claim",
    "Fact",
    "Finding",
    "Measurement",
    "Operator",
    "Point",
    "Probe",
    "ProbeSet",
    "Recipe",
    "Replay",
    "Result",
    "Revision",
    "Run",
    "Segment",
    "Tokenization",
    "Weighing",
]

APPLICATION_ID = int.from_bytes(b"rply")
"""Written into the SQLite header, so that a store is known from any other database."""

SCHEMA_VERSION = 3
"""Number of the newest migration; the database carries its own as ``PRAGMA user_version``."""


class Base(DeclarativeBase):
    """Declarative base of all tables."""

    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy's own form)
        dict[str, Any]: JSON,
        list[str]: JSON,
        int: Integer,
        float: Float,
        str: String,
        bytes: LargeBinary,
    }


class Run(Base):
    """One training run, named as the user sees it."""

    __tablename__ = "run"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    source: Mapped[str]
    location: Mapped[str]
    created: Mapped[float]


class Revision(Base):
    """A checkpoint under the name its source gives it."""

    __tablename__ = "revision"
    __table_args__ = (UniqueConstraint("run_id", "name"), Index("ix_revision_weights", "weights"))
    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"))
    name: Mapped[str]
    commit: Mapped[str | None]
    step: Mapped[int | None]
    tokens: Mapped[int | None]
    epoch: Mapped[float | None]
    stage: Mapped[int | None]
    config: Mapped[str | None]
    weights: Mapped[str | None]
    tokenizer: Mapped[str | None]
    n_bytes: Mapped[int | None]
    files: Mapped[dict[str, Any]]
    scalars: Mapped[dict[str, Any]]
    error: Mapped[str | None]


class Finding(Base):
    """What an audit says of a run, or of one of its revisions."""

    __tablename__ = "finding"
    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"), index=True)
    basis: Mapped[str]
    revision: Mapped[str | None]
    kind: Mapped[str]
    level: Mapped[str]
    others: Mapped[list[str]]
    text: Mapped[str]


class Weighing(Base):
    """Where the statistics of a checkpoint's weights lie."""

    __tablename__ = "weighing"
    weights: Mapped[str] = mapped_column(primary_key=True)
    segment: Mapped[str] = mapped_column(ForeignKey("segment.id"))
    version: Mapped[int]
    """Of the recipe: statistics of different ones cannot be compared."""
    whole: Mapped[int]
    """0 where only some of the tensors were at hand."""


class ProbeSet(Base):
    """An ordered list of inputs, identified by the digest of its content."""

    __tablename__ = "probe_set"
    digest: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    created: Mapped[float]


class Probe(Base):
    """One input of a probe set."""

    __tablename__ = "probe"
    probe_set: Mapped[str] = mapped_column(ForeignKey("probe_set.digest", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
    label: Mapped[str | None]
    probe_id: Mapped[str | None]


class Capture(Base):
    """A probe set at one length limit and one precision: what makes runs comparable."""

    __tablename__ = "capture"
    key: Mapped[str] = mapped_column(primary_key=True)
    probe_set: Mapped[str] = mapped_column(ForeignKey("probe_set.digest"))
    max_length: Mapped[int]
    dtype: Mapped[str]
    used: Mapped[float]


class Tokenization(Base):
    """The token ids that one tokenizer makes of one capture's probes."""

    __tablename__ = "tokenization"
    tokenizer: Mapped[str] = mapped_column(primary_key=True)
    capture: Mapped[str] = mapped_column(ForeignKey("capture.key", ondelete="CASCADE"), primary_key=True)
    tokens: Mapped[str] = mapped_column(ForeignKey("segment.id"))


class Segment(Base):
    """A committed Zarr group; the row is the commit."""

    __tablename__ = "segment"
    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    files: Mapped[dict[str, Any]]
    n_bytes: Mapped[int]
    created: Mapped[float]


class Replay(Base):
    """One checkpoint on one list of token ids at one precision."""

    __tablename__ = "replay"
    __table_args__ = (Index("ix_replay_weights", "weights"),)
    key: Mapped[str] = mapped_column(primary_key=True)
    weights: Mapped[str]
    tokens: Mapped[str] = mapped_column(ForeignKey("segment.id"))
    dtype: Mapped[str]


class Activation(Base):
    """Where one layer's activations of one replay lie."""

    __tablename__ = "activation"
    replay: Mapped[str] = mapped_column(ForeignKey("replay.key", ondelete="CASCADE"), primary_key=True)
    layer: Mapped[str] = mapped_column(primary_key=True)
    module: Mapped[str]
    level: Mapped[str]
    width: Mapped[int]
    segment: Mapped[str] = mapped_column(ForeignKey("segment.id"))
    array: Mapped[str]
    position: Mapped[int]
    verified: Mapped[int] = mapped_column(default=1)
    """0 where the weight files were fetched in part, so that their sha256 could not be checked."""


class Operator(Base):
    """Where the operator that one gauge makes of one layer's activations lies."""

    __tablename__ = "operator"
    replay: Mapped[str] = mapped_column(ForeignKey("replay.key", ondelete="CASCADE"), primary_key=True)
    layer: Mapped[str] = mapped_column(primary_key=True)
    gauge: Mapped[str] = mapped_column(primary_key=True)
    segment: Mapped[str] = mapped_column(ForeignKey("segment.id"))
    position: Mapped[int]


class Point(Base):
    """One layer of one replay, by a short number."""

    __tablename__ = "point"
    __table_args__ = (UniqueConstraint("replay", "layer"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    replay: Mapped[str] = mapped_column(ForeignKey("replay.key", ondelete="CASCADE"))
    layer: Mapped[str]


class Recipe(Base):
    """What is measured, with its parameters and code version as canonical JSON."""

    __tablename__ = "recipe"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(unique=True)


class Measurement(Base):
    """What a recipe makes of one point (``left`` = ``right``) or of two (``left`` < ``right``)."""

    __tablename__ = "measurement"
    __table_args__ = ({"sqlite_with_rowid": False},)
    recipe: Mapped[int] = mapped_column(ForeignKey("recipe.id", ondelete="CASCADE"), primary_key=True)
    left: Mapped[int] = mapped_column(ForeignKey("point.id", ondelete="CASCADE"), primary_key=True)
    right: Mapped[int] = mapped_column(ForeignKey("point.id", ondelete="CASCADE"), primary_key=True)
    numbers: Mapped[bytes]
    """float64, little-endian; empty where it is undefined."""
    reason: Mapped[str | None]
    """Why it is undefined."""


class Result(Base):
    """One analysis result."""

    __tablename__ = "result"
    segment: Mapped[str] = mapped_column(ForeignKey("segment.id"), primary_key=True)
    name: Mapped[str]
    parameters: Mapped[dict[str, Any]]
    used: Mapped[float]


class Fact(Base):
    """A small thing derived from content and worth remembering: a file's digest, the layers a config resolves to."""

    __tablename__ = "fact"
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[dict[str, Any]]


class Claim(Base):
    """Work that one process has taken, so that others leave it alone while it lives."""

    __tablename__ = "claim"
    key: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    expires: Mapped[float]
    n_bytes: Mapped[int] = mapped_column(default=0)
