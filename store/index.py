"""The SQLite index: engines with the right pragmas, and short transactions that are the store's only commit point."""

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, delete, event, select, update
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from store.errors import NotAStore, StoreDamaged, StoreError, StoreNotWritable, StoreTooNew, StoreTooOld
from store.schema import APPLICATION_ID, SCHEMA_VERSION, Claim, Fact

__all__ = ["Index", "connect", "refused"]

LEASE_SECONDS = 600.0
"""How long a claim of a process on another host is believed after its last sign of life."""


def connect(database: Path, *, read_only: bool = False) -> Engine:
    """Return an engine on ``database`` with WAL, full synchronisation, foreign keys and a 30 s busy timeout.

    Raises
    ------
    StoreError
        If SQLite did not take a pragma; a store without them would not be safe.
    """
    query = "?mode=ro&uri=true" if read_only else "?uri=true"
    log = database.with_name(f"{database.name}-wal")
    if read_only and not os.access(database.parent, os.W_OK) and not (log.exists() and log.stat().st_size):
        query = "?immutable=1&uri=true"  # the log's side files could not be made here, and there is nothing in it
    engine = create_engine(
        f"sqlite:///{database.resolve().as_uri()}{query}", poolclass=NullPool, connect_args={"timeout": 30}
    )

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver must not begin transactions behind our back
        connection.execute("PRAGMA busy_timeout=30000")
        connection.execute("PRAGMA foreign_keys=ON")
        if read_only:
            return
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        connection.execute("PRAGMA synchronous=FULL")
        level = connection.execute("PRAGMA synchronous").fetchone()[0]
        if mode != "wal" or level != 2:
            raise StoreError(
                f"{database} cannot use write-ahead logging (SQLite answered journal_mode={mode}, "
                f"synchronous={level}): keep the store on a local file system"
            )

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))

    return engine


class Index:
    """Rows in and out of one ``index.sqlite``.

    Parameters
    ----------
    database
        Path of the file; it must exist and have this version's schema.
    read_only
        Refuse to write.

    Raises
    ------
    NotAStore, StoreTooNew, StoreTooOld
        If the file is no index of this version.
    """

    def __init__(self, database: Path, *, read_only: bool = True) -> None:
        self.database = database
        self.read_only = read_only
        self._engine = connect(database, read_only=read_only)
        self._immediate = self._engine.execution_options(begin="BEGIN IMMEDIATE")
        # Two users of one process are two owners, each with work of its own.
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}#{uuid.uuid4().hex}"
        self._held: set[str] = set()
        self._keeper: threading.Thread | None = None
        self._check()

    def _check(self) -> None:
        folder = self.database.parent
        with self.read() as session:
            connection = session.connection()
            application = connection.exec_driver_sql("PRAGMA application_id").scalar_one()
            version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        if application != APPLICATION_ID:
            raise NotAStore(f"{folder} is not a replay store: its index.sqlite belongs to another program")
        if version > SCHEMA_VERSION:
            raise StoreTooNew(
                f"{folder} was written by a newer replay (format {version}, this one reads {SCHEMA_VERSION}): "
                "upgrade replay (pip install -U checkpoint-replay)"
            )
        if version < SCHEMA_VERSION:
            raise StoreTooOld(
                f"{folder} was written by an older replay (format {version}, this one reads {SCHEMA_VERSION}): "
                f"run `replay --store {folder} upgrade` once"
            )

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Open a session that sees one snapshot."""
        try:
            with Session(self._engine) as session:
                yield session
        except DatabaseError as error:
            raise refused(str(error.orig), self.database.parent) from error

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Open a session that holds the write lock from its start and commits at its end.

        Raises
        ------
        StoreNotWritable
            If the store was opened read-only, the file may not be written, or the disk is full.
        """
        if self.read_only:
            raise StoreNotWritable(f"{self.database.parent} was opened read-only: open it with write=True")
        try:
            with Session(self._immediate, expire_on_commit=False) as session, session.begin():
                yield session
        except DatabaseError as error:
            raise refused(str(error.orig), self.database.parent) from error

    def fact(self, key: str) -> dict[str, Any] | None:
        """Return what is remembered under ``key``, or None."""
        with self.read() as session:
            return session.scalar(select(Fact.value).where(Fact.key == key))

    def remember(self, key: str, value: dict[str, Any]) -> None:
        """Keep ``value`` under ``key``, replacing what was there."""
        with self.write() as session:
            session.merge(Fact(key=key, value=value))

    def claim(self, key: str) -> bool:
        """Take the work ``key`` for this process; False if a living process has it.

        A claim whose owner died on this host is free at once; one from another host after ``LEASE_SECONDS`` without a
        sign of life.
        """
        now = time.time()
        with self.write() as session:
            row = session.get(Claim, key)
            if row is not None and row.owner != self._owner and not self._abandoned(row, now):
                return False
            kept = row.n_bytes if row is not None and row.owner == self._owner else 0
            session.merge(Claim(key=key, owner=self._owner, expires=now + LEASE_SECONDS, n_bytes=kept))
        self._held.add(key)
        if self._keeper is None:
            self._keeper = threading.Thread(target=self._keep_alive, daemon=True)
            self._keeper.start()
        return True

    def reserve(self, key: str, n_bytes: int, *, budget: int, stray: int = 0) -> bool:
        """Set room aside for the download of the claimed work ``key``, until it is released; False if there is none.

        Parameters
        ----------
        key
            Work that this process has claimed.
        n_bytes
            Bytes it may take.
        budget
            Bytes that all living claims on this store may take together.
        stray
            Bytes on the disk that belong to no living claim.
        """
        now = time.time()
        with self.write() as session:
            rows = session.scalars(select(Claim)).all()
            taken = sum(row.n_bytes for row in rows if row.key != key and not self._abandoned(row, now))
            mine = next((row for row in rows if row.key == key and row.owner == self._owner), None)
            if mine is None or taken + stray + n_bytes > budget:
                return False
            mine.n_bytes = n_bytes
        return True

    def claimed(self) -> dict[str, int]:
        """Return the work that living processes have taken, this one among them, with the room reserved for each."""
        now = time.time()
        with self.read() as session:
            return {row.key: row.n_bytes for row in session.scalars(select(Claim)) if not self._abandoned(row, now)}

    def holds(self, session: Session, key: str) -> bool:
        """Return whether this process still owns ``key``, inside the transaction that depends on it."""
        row = session.get(Claim, key)
        return row is not None and row.owner == self._owner

    def release(self, key: str) -> None:
        """Give the work ``key`` back, done or not."""
        self._held.discard(key)
        with self.write() as session:
            session.execute(delete(Claim).where(Claim.key == key, Claim.owner == self._owner))

    def _abandoned(self, claim: Claim, now: float) -> bool:
        if claim.owner == self._owner:
            return False
        host, pid, started = claim.owner.partition("#")[0].rsplit(":", 2)
        if host == socket.gethostname():
            return _started(int(pid)) != started
        return claim.expires < now

    def _keep_alive(self) -> None:
        while True:
            time.sleep(LEASE_SECONDS / 3)
            if not self._held:
                continue
            alive = update(Claim).where(Claim.owner == self._owner).values(expires=time.time() + LEASE_SECONDS)
            # The next round tries again, long before the lease ends; what is really wrong the worker will meet itself.
            with suppress(StoreError), self.write() as session:
                session.execute(alive)


def _started(pid: int) -> str:
    """Return when process ``pid`` began, so that a reused number is not taken for its former owner; empty if gone."""
    import psutil

    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.NoSuchProcess:
        return ""


def refused(text: str, folder: Path) -> StoreError:
    """Return the error that tells a person what SQLite's ``text`` means for the store in ``folder``."""
    if "not a database" in text:
        return NotAStore(f"{folder} is not a replay store: its index.sqlite is no SQLite file")
    if "malformed" in text:
        return StoreDamaged(f"the index of {folder} is damaged ({text}): put back a copy of index.sqlite")
    if "full" in text or "disk I/O" in text:
        return StoreNotWritable(
            f"no space left for {folder}: free some and run the same command again; nothing is lost"
        )
    if "readonly" in text or "unable to open" in text:
        return StoreNotWritable(f"{folder} may not be written by this user: check its permissions")
    return StoreError(f"the index of {folder} answered: {text}")
