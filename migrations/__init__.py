"""The Alembic history of the index, applied from inside the package."""

import sqlite3
from contextlib import closing
from pathlib import Path

from store.errors import NotAStore, StoreTooNew
from store.schema import APPLICATION_ID, SCHEMA_VERSION

__all__ = ["upgrade"]


def upgrade(database: Path) -> bool:
    """Bring the index at ``database`` to this version, making it if there is none.

    An older index is copied beside itself (``index.sqlite.v1`` for version 1) before its first change. Several
    processes may call this at once: a file lock lets one work and the others find it done.

    Returns
    -------
    bool
        Whether anything had to be done.

    Raises
    ------
    StoreTooNew
        If a newer version of replay wrote the index.
    """
    if _version(database) == SCHEMA_VERSION:
        return False
    from alembic import command
    from alembic.config import Config
    from filelock import FileLock
    from sqlalchemy.exc import OperationalError

    from store.index import connect, refused

    with FileLock(database.with_name("index.lock")):
        version = _version(database)
        if version == SCHEMA_VERSION:
            return False
        if version > SCHEMA_VERSION:
            raise StoreTooNew(
                f"{database.parent} was written by a newer replay (format {version}, this one reads {SCHEMA_VERSION}): "
                "upgrade replay (pip install -U checkpoint-replay)"
            )
        if version:
            backup = database.with_name(f"{database.name}.v{version}")
            backup.unlink(missing_ok=True)
            with closing(sqlite3.connect(database)) as connection:
                connection.execute("VACUUM INTO ?", (str(backup),))
        engine = connect(database)
        config = Config()
        config.set_main_option("script_location", "migrations:")
        config.set_main_option("path_separator", "os")
        try:
            with engine.execution_options(begin="BEGIN IMMEDIATE").begin() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except OperationalError as error:
            raise refused(str(error.orig), database.parent) from error
    return True


def _version(database: Path) -> int:
    if not database.exists():
        return 0
    try:
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            empty = not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    except sqlite3.OperationalError as error:
        from store.index import refused

        raise refused(str(error), database.parent) from error
    except sqlite3.DatabaseError as error:
        raise NotAStore(f"{database.parent} is not a replay store: its index.sqlite is no SQLite file") from error
    if application != APPLICATION_ID and not empty:
        raise NotAStore(f"{database.parent} is not a replay store: its index.sqlite belongs to another program")
    return int(version)
