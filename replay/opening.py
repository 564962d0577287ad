"""Opening a store: make it or bring it to this version first, then hand it out."""

from pathlib import Path

from store.catalog import INDEX, Store
from store.errors import NotAStore
from store.segments import refusal, sweep

__all__ = ["open_store"]


def open_store(root: Path | str, *, write: bool = False) -> Store:
    """Open the store in ``root``.

    Parameters
    ----------
    root
        Folder of the store.
    write
        Allow changes: make the store if the folder is missing or empty, and migrate an older one.

    Raises
    ------
    NotAStore
        If ``root`` holds something else, or nothing and ``write`` is off.
    StoreTooNew, StoreTooOld
        If another version of replay wrote it; with ``write`` an older one is migrated instead.
    StoreNotWritable
        If ``write`` is on and the folder cannot be written.
    """
    root = Path(root)
    if not write:
        return Store(root)
    import migrations

    if root.exists() and not (root / INDEX).exists():
        if not root.is_dir():
            raise NotAStore(f"{root} is a file, not a store folder: name another with --store")
        strangers = sorted(
            {path.name for path in root.iterdir()} - {"index.lock", "segments", "staging", "checkpoints"}
        )
        if strangers:
            raise NotAStore(
                f"{root} is not a replay store and not empty (it holds {strangers[0]}): name another with --store"
            )
    try:
        for folder in ("segments", "staging", "checkpoints"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        migrations.upgrade(root / INDEX)
        store = Store(root, write=True)
        sweep(root, claimed=store.index.claimed())
    except OSError as error:
        raise refusal(error, root) from error
    return store
