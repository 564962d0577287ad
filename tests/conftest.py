"""What all tests share: one hub emulator for the session, small runs on disk, empty stores."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub import Hub

_HUB = Hub()
_CACHE = tempfile.TemporaryDirectory(prefix="replay-tests-")
# The client reads these when it is first imported, which any test module may do.
for _name, _value in _HUB.environ(Path(_CACHE.name)).items():
    os.environ[_name] = _value
os.environ.pop("HF_TOKEN", None)
os.environ["OMP_NUM_THREADS"] = "1"  # children as well: the same bits, and no fight over two cores


@pytest.fixture(scope="session")
def hub() -> Iterator[Hub]:
    """The emulator that this process's and its children's client talks to."""
    with _HUB:
        yield _HUB


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three runs, ``seed1`` to ``seed3``, of a small GPT-NeoX at steps 0, 1, 2, 4, 8."""
    from runs import write_run

    root = tmp_path_factory.mktemp("family")
    for seed in (1, 2, 3):
        write_run(root / f"seed{seed}", seed=seed, steps=(0, 1, 2, 4, 8))
    return root


@pytest.fixture(scope="session")
def probe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 40 short probes with labels."""
    from runs import write_probes

    return write_probes(tmp_path_factory.mktemp("probes") / "forty.jsonl", 40)


@pytest.fixture(scope="session")
def replayed(tmp_path_factory: pytest.TempPathFactory, family: Path, probe_file: Path) -> Path:
    """A store of the three runs with all their blocks and no analysis yet; copy it before writing."""
    from click.testing import CliRunner

    import cli

    root = tmp_path_factory.mktemp("replayed") / "store"
    paths = [argument for seed in (1, 2, 3) for argument in ("--path", str(family / f"seed{seed}"))]
    command = ["--store", str(root), "ingest", *paths, "--revisions", "all", "--probes", str(probe_file)]
    result = CliRunner().invoke(cli.main, command)
    assert result.exit_code == 0, result.output
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where a test's store shall be; nothing is there yet."""
    return tmp_path / "store"
