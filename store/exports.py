"""Parts of a store written for others."""

import errno
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from store.catalog import Store
from store.errors import InvalidInput, StoreNotWritable
from store.segments import refusal

__all__ = ["Exported", "export_zarr"]


class Exported(NamedTuple):
    """What an export wrote."""

    n_files: int
    """Files of the new store."""
    n_linked: int
    """Bytes shared with the replay store."""
    n_written: int
    """Bytes written anew."""


def export_zarr(store: Store, run: str, target: Path, *, layers: Sequence[str] | None = None) -> Exported:
    """Write the activations of ``run`` as a plain Zarr v3 store that needs nothing of ours to open.

    Array data are hard links where ``target`` is on the same disk, copies elsewhere, so an export takes next to no
    room. The files are shared with the store: read the export, do not write into it. It appears whole or not at all.

    Raises
    ------
    InvalidInput
        If ``target`` exists.
    StoreNotWritable
        If it cannot be written.
    UnknownRun, UnknownLayer
        If the store does not hold what was asked for.
    """
    if target.resolve().is_relative_to(store.root.resolve()):
        raise InvalidInput(f"{target} lies inside the store: name a folder outside of it")
    if target.exists():
        raise InvalidInput(f"{target} exists already: name a folder that does not")
    import zarr
    from zarr.errors import ZarrUserWarning

    dataset = store.activations(run, layers=layers)
    view = dataset.encoding["view"]
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    n_linked = 0
    try:
        aside.parent.mkdir(parents=True, exist_ok=True)
        dataset.drop_vars(dataset.data_vars).to_zarr(aside, consolidated=False, zarr_format=3)
        for key, content in view.metadata.items():
            if key != "zarr.json":
                (aside / key).parent.mkdir(parents=True, exist_ok=True)
                (aside / key).write_bytes(content)
        for key, source in view.chunks():
            (aside / key).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, aside / key)
                n_linked += source.stat().st_size
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                    raise
                shutil.copyfile(source, aside / key)
        with warnings.catch_warnings():
            # Not in the specification yet, ignored by readers that do not know it, and expected by xarray.
            warnings.filterwarnings("ignore", "Consolidated metadata", ZarrUserWarning)
            zarr.consolidate_metadata(str(aside))
        aside.rename(target)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise StoreNotWritable(str(refusal(error, target))) from error
    files = [path for path in target.rglob("*") if path.is_file()]
    n_written = sum(path.stat().st_size for path in files) - n_linked
    return Exported(len(files), n_linked, n_written)
