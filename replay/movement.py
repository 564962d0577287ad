"""How the weights of a run moved: norms and distances of each tensor group, from step to step and to the end."""

from typing import TYPE_CHECKING

from replay.weighing import VERSION, neighbours, read_weighing
from store.catalog import Store
from store.commits import get_revisions
from store.errors import Unavailable

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["weight_movement"]


def weight_movement(store: Store, run: str) -> "pd.DataFrame":
    """Tabulate the stored statistics of a run's weights.

    Parameters
    ----------
    store
        A store.
    run
        Name of the run.

    Returns
    -------
    pandas.DataFrame
        One row a revision with a step and tensor group, in training order within each stage: run, revision, step,
        stage, group; ``norm`` (L2), ``row_norm`` (median L2 norm of the rows of its matrices); ``to_previous``,
        ``to_next``, ``to_final``: L2 distances to the revision before, after and last, estimated from a fixed sample of
        entries with a relative standard error of 1 to 3 %. Revisions of other tensors than the last are left out.

    Raises
    ------
    Unavailable
        If no weights of the run were looked at yet.
    """
    import pandas as pd

    records = [record for record in get_revisions(store, run) if record.step is not None and record.weights]
    stored = {
        digest: read_weighing(dataset)
        for digest, dataset in store.weighings({str(record.weights) for record in records}, version=VERSION).items()
    }
    frames = []
    for stage in sorted({record.stage or 1 for record in records}):
        mine = [record for record in records if (record.stage or 1) == stage and record.weights in stored]
        first = {record.step: record for record in sorted(mine, key=lambda record: record.name, reverse=True)}
        steps = [step for step in sorted(first, key=lambda step: step or 0) if step is not None]
        weighings = [stored[str(first[step].weights)] for step in steps]
        same = [
            number
            for number, weighing in enumerate(weighings)
            if (weighing.groups, weighing.entries.tolist()) == (weighings[-1].groups, weighings[-1].entries.tolist())
        ]
        steps, weighings = [steps[number] for number in same], [weighings[number] for number in same]
        if not steps:
            continue
        table = neighbours(steps, weighings)
        for number, step in enumerate(steps):
            record = first[step]
            frames.append(
                pd.DataFrame(
                    {
                        "run": run,
                        "revision": record.name,
                        "step": step,
                        "stage": stage,
                        "group": weighings[number].groups,
                        "norm": table.norm[number],
                        "row_norm": table.row_norm[number],
                        "to_previous": table.to_previous[number],
                        "to_next": table.to_next[number],
                        "to_final": table.to_final[number],
                    }
                )
            )
    if not frames:
        raise Unavailable(
            f"the weights of {run} were not looked at yet: `replay ingest` does that when it replays them"
        )
    return pd.concat(frames, ignore_index=True)
