"""The error tree of the project, grouped by what a handler would do about it.

ReplayError                      anything this project raises on purpose; its text is one line for a person
├── InvalidInput (ValueError)    what was given is malformed: correct the call
│   ├── InvalidSelection         a ``--revisions`` expression that cannot be read or selects nothing
│   ├── InvalidProbes            a probe file that cannot be used, a probe set that may not change
│   └── InvalidLayer             a layer expression that cannot be read
├── NotFound (LookupError)       what was named does not exist: choose among what the text lists
│   ├── UnknownRun               a run, probe set or result that the store does not hold
│   ├── UnknownRevision          a revision that the source does not have
│   ├── UnknownLayer             a layer path that the model or the store does not have
│   └── UnknownSource            a repository or folder that does not exist
├── AccessError                  the source exists but cannot be reached now: log in, wait, go online
│   ├── GatedSource              a repository that asks for a token or for its terms to be accepted
│   └── SourceUnreachable        no network, a server that fails
├── CheckpointError              one revision cannot be replayed: the others go on
│   ├── MissingWeights           no weight file that could be loaded
│   ├── DamagedWeights           a truncated file, a digest that differs, a pickle that is not plain tensors
│   └── MismatchedWeights        missing or unexpected keys
├── StoreError                   the store folder cannot be used as it is
│   ├── NotAStore                a folder that is no replay store
│   ├── StoreTooNew              made by a newer version of replay
│   ├── StoreTooOld              made by an older version: ``replay upgrade``
│   ├── StoreNotWritable         no permission, no space left
│   └── StoreDamaged             a committed segment that is missing or altered
└── Unavailable                  a measurement that is undefined for this input, with the reason; stored as such
"""

__all__ = [
    "AccessError",
    "CheckpointError",
    "DamagedWeights",
    "GatedSource",
    "InvalidInput",
    "InvalidLayer",
    "InvalidProbes",
    "InvalidSelection",
    "MismatchedWeights",
    "MissingWeights",
    "NotAStore",
    "NotFound",
    "ReplayError",
    "SourceUnreachable",
    "StoreDamaged",
    "StoreError",
    "StoreNotWritable",
    "StoreTooNew",
    "StoreTooOld",
    "Unavailable",
    "UnknownLayer",
    "UnknownRevision",
    "UnknownRun",
    "UnknownSource",
]


class ReplayError(Exception):
    """Anything this project raises on purpose; ``str()`` of it is one line for a person."""


class InvalidInput(ReplayError, ValueError):
    """What was given is malformed."""


class InvalidSelection(InvalidInput):
    """A revision expression that cannot be read or selects nothing."""


class InvalidProbes(InvalidInput):
    """A probe file that cannot be used, or a probe set that may not change."""


class InvalidLayer(InvalidInput):
    """A layer expression that cannot be read."""


class NotFound(ReplayError, LookupError):
    """What was named does not exist."""


class UnknownRun(NotFound):
    """A run, probe set or result that the store does not hold."""


class UnknownRevision(NotFound):
    """A revision that the source does not have."""


class UnknownLayer(NotFound):
    """A layer path that the model or the store does not have."""


class UnknownSource(NotFound):
    """A repository or folder that does not exist."""


class AccessError(ReplayError):
    """The source exists but cannot be reached now."""


class GatedSource(AccessError):
    """A repository that asks for a token or for its terms to be accepted."""


class SourceUnreachable(AccessError):
    """No network, or a server that fails."""


class CheckpointError(ReplayError):
    """One revision cannot be replayed."""


class MissingWeights(CheckpointError):
    """No weight file that could be loaded."""


class DamagedWeights(CheckpointError):
    """A truncated file, a digest that differs, or a pickle that is not plain tensors."""


class MismatchedWeights(CheckpointError):
    """Missing or unexpected keys."""


class StoreError(ReplayError):
    """The store folder cannot be used as it is."""


class NotAStore(StoreError):
    """A folder that is no replay store."""


class StoreTooNew(StoreError):
    """A store made by a newer version of replay."""


class StoreTooOld(StoreError):
    """A store made by an older version of replay, to be upgraded first."""


class StoreNotWritable(StoreError):
    """No permission, or no space left."""


class StoreDamaged(StoreError):
    """A committed segment that is missing or altered."""


class Unavailable(ReplayError):
    """A measurement that is undefined for this input, with the reason."""
