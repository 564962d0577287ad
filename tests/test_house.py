"""The house itself: which way imports run, what a name exports, how the schema grows."""

import ast
import importlib
import pkgutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import click
import pytest

import cli
import migrations
import replay
import store
from store.index import connect
from store.schema import APPLICATION_ID, SCHEMA_VERSION, Base

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "store": set(),
    "migrations": {"store"},
    "replay": {"migrations", "store"},
    "cli": {"migrations", "replay", "store"},
}
MODULES = [
    name
    for package in (cli, migrations, replay, store)
    for _, name, _ in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if name not in ("cli.__main__", "migrations.env")  # these two run when imported
]


def imported_packages(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_run_one_way(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        backwards = imported_packages(path) & (set(ALLOWED) - ALLOWED[package] - {package})
        assert not backwards, f"{path.relative_to(ROOT)} imports {backwards}"


@pytest.mark.parametrize("path", sorted((ROOT / "store").rglob("*.py")), ids=lambda path: path.name)
def test_the_store_never_imports_a_model(path: Path) -> None:
    assert not imported_packages(path) & {"torch", "transformers", "huggingface_hub"}


def test_reading_a_store_and_asking_for_help_do_not_pay_for_a_model() -> None:
    program = (
        "import sys, replay, cli, store.catalog, store.commits, store.backend\n"
        "from click.testing import CliRunner\n"
        "assert CliRunner().invoke(cli.main, ['ingest', '--help']).exit_code == 0\n"
        "print(sorted({'torch', 'transformers', 'dask'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    program = "import sys, cli; print(sorted({'torch', 'xarray', 'sqlalchemy', 'numpy', 'zarr'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", MODULES)
def test_what_a_module_exports_exists(name: str) -> None:  # that it is sorted, ruff checks
    module = importlib.import_module(name)
    for item in getattr(module, "__all__", ()):
        assert hasattr(module, item), f"{name}.__all__ names {item}, which is not there"


def test_the_public_face_is_complete() -> None:
    assert replay.__all__ == sorted(replay.__all__)
    for name in replay.__all__:
        assert getattr(replay, name) is not None
        assert getattr(replay, name).__doc__
    assert set(replay.__all__) <= set(dir(replay))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        replay.nothing  # noqa: B018 (the access is the test)


def commands(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    found = [(path, command)]
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            found += commands(child, (*path, name))
    return found


@pytest.mark.parametrize(("path", "command"), commands(cli.main), ids=lambda value: str(value) if value else "replay")
def test_every_command_and_option_has_help(path: tuple[str, ...], command: click.Command) -> None:
    assert command.help, f"replay {' '.join(path)} has no help"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"replay {' '.join(path)} {parameter.opts[0]} has no help"


def test_the_migrations_make_the_schema_that_the_code_declares(tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    database = tmp_path / "index.sqlite"
    assert migrations.upgrade(database)
    assert not migrations.upgrade(database)
    with connect(database).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        assert connection.exec_driver_sql("PRAGMA user_version").scalar_one() == SCHEMA_VERSION
        assert connection.exec_driver_sql("PRAGMA application_id").scalar_one() == APPLICATION_ID


def test_processes_that_open_a_fresh_store_at_once_all_succeed(tmp_path: Path) -> None:
    program = (
        f"from replay.opening import open_store; print(len(open_store({str(tmp_path / 's')!r}, write=True).runs()))"
    )
    children = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [child.communicate()[0].strip() for child in children] == ["0"] * 3
    with closing(sqlite3.connect(tmp_path / "s" / "index.sqlite")) as connection:
        assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)


def test_an_older_index_is_copied_before_it_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = tmp_path / "index.sqlite"
    migrations.upgrade(database)
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("INSERT INTO fact VALUES ('key', '{}')")
        connection.commit()
    monkeypatch.setattr(migrations, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    migrations.upgrade(database)
    with closing(sqlite3.connect(tmp_path / f"index.sqlite.v{SCHEMA_VERSION}")) as connection:
        assert connection.execute("SELECT key FROM fact").fetchone() == ("key",)
