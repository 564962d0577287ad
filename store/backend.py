"""xarray's door to a store: ``xarray.open_dataset(store, engine="replay", run=…)`` and ``open_datatree``."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xarray as xr
from xarray.backends import BackendEntrypoint

from store.catalog import Store
from store.errors import InvalidInput

__all__ = ["ReplayBackend"]


class ReplayBackend(BackendEntrypoint):
    """Opens replay stores; registered under the name ``replay``."""

    description = "Open replay stores: activations of a training run's checkpoints"
    open_dataset_parameters = ("filename_or_obj", "drop_variables", "run", "layers", "probes", "dtype")
    supports_groups = True

    def open_dataset(  # type: ignore[override]
        self,
        filename_or_obj: str | os.PathLike[str],
        *,
        drop_variables: str | Iterable[str] | None = None,
        run: str | None = None,
        layers: str | list[str] | None = None,
        probes: str | None = None,
        dtype: str | None = None,
    ) -> xr.Dataset:
        """Open the activations of one run, lazily.

        Parameters
        ----------
        filename_or_obj
            Folder of the store.
        drop_variables
            Names of variables to leave out.
        run
            Name of the run; may be left out where the store has one.
        layers, probes, dtype
            As for `store.Store.activations`.

        Raises
        ------
        InvalidInput
            If the store has several runs and none is named.
        """
        store = Store(Path(filename_or_obj))
        if run is None:
            names = list(store.runs()["run"])
            if len(names) != 1:
                raise InvalidInput(
                    f"{store.root} has {len(names)} runs: open one with run=…, or all with xarray.open_datatree; "
                    f"there is {', '.join(names)}"
                )
            run = names[0]
        dataset = store.activations(run, layers=layers, probes=probes, dtype=dtype)
        dropped = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables or [])
        return dataset.drop_vars(dropped, errors="ignore")

    def open_groups_as_dict(  # type: ignore[override]
        self, filename_or_obj: str | os.PathLike[str], **selection: Any
    ) -> dict[str, xr.Dataset]:
        """Open every replayed run of the store as one group each."""
        store = Store(Path(filename_or_obj))
        groups = {"/": xr.Dataset(attrs={"store": str(store.root)})}
        for run in store.runs()["run"]:
            if store.captures(run):
                groups[f"/{run}"] = self.open_dataset(filename_or_obj, run=run, **selection)
        return groups

    def open_datatree(  # type: ignore[override]
        self, filename_or_obj: str | os.PathLike[str], **selection: Any
    ) -> xr.DataTree:
        """Open every replayed run of the store as one tree."""
        return xr.DataTree.from_dict(self.open_groups_as_dict(filename_or_obj, **selection))

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Return whether this is a folder with an index."""
        return isinstance(filename_or_obj, (str, os.PathLike)) and (Path(filename_or_obj) / "index.sqlite").is_file()
