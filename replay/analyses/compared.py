"""Which two checkpoints of each run are compared: named, the neighbours of a step, or the first and the last."""

from collections.abc import Sequence

from replay.analyses.selection import History, Selection
from store.catalog import Store
from store.errors import InvalidInput, UnknownRevision
from store.names import suggest

__all__ = ["Compared", "compared_steps"]

Compared = dict[str, tuple[int, int] | str]
"""The two steps that are compared in each run, or why there are none."""


def compared_steps(
    store: Store, selection: Selection, before: str | int | None, after: str | int | None, around: int | None
) -> Compared:
    """Return which two steps to compare in each run.

    Parameters
    ----------
    store, selection
        What was chosen of what.
    before, after
        A revision, an alias of one, or a step, in every run; by default its first and last step with all the layers.
    around
        Instead of these, a step: the last checkpoint before it and the first after it are compared.

    Returns
    -------
    dict
        By run: the earlier and the later step, or why there are none where nobody named any.

    Raises
    ------
    InvalidInput
        If the two are one or in the wrong order, or ``around`` is not between two checkpoints.
    UnknownRevision
        If a run has no such checkpoint.
    """
    if around is not None and (before is not None or after is not None):
        raise InvalidInput("give either --around or --before and --after: both say which checkpoints to compare")
    compared: Compared = {}
    for run, history in selection.histories.items():
        layers = selection.layers
        there = [s for s in history.steps(layers) if all((s, layer) in history.slices for layer in layers)]
        if around is not None:
            compared[run] = _neighbours(run, there, around)
        elif len(there) < 2 and before is None and after is None:
            compared[run] = f"a change needs two checkpoints that have all these layers, and there are {len(there)}"
        else:
            ends = there or history.steps(layers)
            first = ends[0] if before is None else _find_step(store, run, history, layers, str(before))
            last = ends[-1] if after is None else _find_step(store, run, history, layers, str(after))
            if first >= last:
                raise InvalidInput(
                    f"a change goes from an earlier checkpoint to a later one, not from step {first} to step {last} "
                    f"of {run}: name others with --before and --after"
                )
            compared[run] = first, last
    return compared


def _neighbours(run: str, steps: Sequence[int], around: int) -> tuple[int, int]:
    earlier, later = [step for step in steps if step < around], [step for step in steps if step > around]
    if not earlier or not later:
        has = f"it has {len(steps)} from step {steps[0]} to {steps[-1]}" if steps else "none has all these layers"
        raise InvalidInput(f"--around {around} needs a checkpoint of {run} before that step and one after, and {has}")
    return earlier[-1], later[0]


def _find_step(store: Store, run: str, history: History, layers: Sequence[str], name: str) -> int:
    """Return the step of a revision that is named by itself, by its step, or by an alias."""
    there = history.steps(layers)
    step_of = {history.revisions[step].name: step for step in there}
    table = store.revisions(run)
    alias_of = dict(zip(table["revision"], table["alias_of"], strict=True))
    for known in (name, alias_of.get(name)):
        if known in step_of:
            return step_of[known]
    if name.isdigit() and int(name) in there:
        return int(name)
    if name in history.flagged:
        raise UnknownRevision(
            f"{name} of {run} is left out as flagged ({history.flagged[name]}): --include-flagged takes it in"
        )
    nearest = sorted(there, key=lambda step: abs(step - int(name)))[:2] if name.isdigit() else []
    has = f"nearest are steps {', '.join(map(str, sorted(nearest)))}" if nearest else suggest(name, list(step_of))
    raise UnknownRevision(f"no checkpoint {name!r} of {run} to compare; {has}")
