"""The stable rank of weight matrices: that of a full SVD, whatever the spectrum, and kept once for each checkpoint."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from runs import write_probes
from safetensors.torch import load_file

import cli
from replay import weight_ranks as module
from replay.analyses.selection import Choice
from replay.analyses.weights import weight_ranks as stored_ranks
from replay.plan import IngestRequest
from replay.probes import Probe, ProbeSet
from replay.weight_ranks import WeightRank, stable_rank, weight_ranks
from store.catalog import Store
from store.errors import InvalidInput, Unavailable

RNG = np.random.default_rng(0)


def of_svd(W: torch.Tensor) -> float:
    """The definition, from all singular values in double precision."""
    s = np.linalg.svd(W.double().reshape(len(W), -1).numpy(), compute_uv=False)
    return float(np.sum(s**2) / s[0] ** 2)


def with_singular_values(s: np.ndarray, n_rows: int, *, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    U = np.linalg.qr(rng.standard_normal((n_rows, len(s))))[0]
    V = np.linalg.qr(rng.standard_normal((len(s), len(s))))[0]
    return torch.from_numpy((U * s) @ V).float()


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


D = 128
SPECTRA = {
    "power law": np.arange(1, D + 1) ** -0.5,
    "ill conditioned": np.logspace(0, -9, D),
    "collapsed to rank 5": np.where(np.arange(D) < 5, 1.0, 0.0),
    "flat": np.ones(D),
    **{f"clustered within {width:g}": 1 - width * np.linspace(0, 1, D) for width in (1e-7, 1e-6, 1e-5, 1e-4, 1e-3)},
    "two at the top, apart by 1e-6": np.r_[1, 1 - 1e-6, np.full(D - 2, 0.3)],
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("n_rows", [D, 900])
def test_the_stable_rank_is_that_of_a_full_svd_to_a_millionth(spectrum: str, n_rows: int) -> None:
    W = with_singular_values(SPECTRA[spectrum], n_rows)
    for matrix in (W, W.T):
        assert stable_rank(matrix) == pytest.approx(of_svd(matrix), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_random_matrices_of_every_shape_and_type_agree_with_a_full_svd(dtype: torch.dtype) -> None:
    for shape in ((300, 200), (7, 900), (1, 50), (40, 1), (20, 8, 3, 3)):
        W = torch.from_numpy(RNG.standard_normal(shape)).to(dtype)
        (rank,) = weight_ranks({"W": W}).values()
        assert isinstance(rank, WeightRank)
        assert rank.stable_rank == pytest.approx(of_svd(W), rel=1e-9)  # the error of a lone direction counts squared
        assert (rank.rows, rank.columns) == (shape[0], int(np.prod(shape[1:])))


def test_closed_forms() -> None:
    assert stable_rank(torch.eye(50)) == pytest.approx(50, rel=1e-12)
    assert stable_rank(torch.outer(torch.arange(1.0, 9), torch.arange(1.0, 5))) == pytest.approx(1, rel=1e-12)
    assert stable_rank(torch.diag(torch.tensor([2.0, 1.0, 1.0]))) == pytest.approx(6 / 4, rel=1e-12)


def test_rows_are_not_centred() -> None:
    assert stable_rank(torch.eye(50) + 5) == pytest.approx((50 * 49 * 25 + 50 * 36) / 251**2, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-35, 1e-3, 1e18, 1e37])
def test_scale_does_not_matter_however_large_or_small(scale: float) -> None:
    W = with_singular_values(np.linspace(1, 0.1, 60), 80)
    assert stable_rank(W * scale) == pytest.approx(of_svd(W), rel=1e-6)


def test_rotations_do_not_matter() -> None:
    W = with_singular_values(np.linspace(1, 0.1, 60), 80).double()
    Q = torch.from_numpy(np.linalg.qr(RNG.standard_normal((80, 80)))[0])
    assert stable_rank(Q @ W) == pytest.approx(stable_rank(W), rel=1e-12)


def test_the_blocks_of_rows_in_which_a_matrix_is_read_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    W = torch.from_numpy(RNG.standard_normal((700, 90)))
    whole = stable_rank(W)
    monkeypatch.setattr(module, "_BLOCK_ENTRIES", 1000)
    assert stable_rank(W) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(
    ("W", "reason"),
    [
        (torch.zeros(4, 3), "all zeros"),
        (torch.zeros(0, 3), "has no entries"),
        (torch.tensor([[1.0, torch.nan]]), "not finite"),
        (torch.tensor([[1.0, -torch.inf]]), "not finite"),
    ],
)
def test_an_undefined_rank_has_its_reason(W: torch.Tensor, reason: str) -> None:
    with pytest.raises(Unavailable, match=reason):
        stable_rank(W)
    assert reason in str(weight_ranks({"W": W})["W"])


def test_a_stable_rank_is_that_of_a_matrix() -> None:
    with pytest.raises(InvalidInput, match=r"a tensor of shape \[2, 3, 4\] was given"):
        stable_rank(torch.ones(2, 3, 4))


def test_vectors_integers_and_second_names_of_one_memory_are_left_out() -> None:
    W = torch.eye(3)
    weights = {"b": W, "a": W, "t": W[:2], "norm": torch.ones(3), "ids": torch.ones(3, 3, dtype=torch.int64)}
    assert list(weight_ranks(weights)) == ["a", "t"]


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory, family: Path, probe_file: Path) -> Path:
    """A store of two runs, of one of which the weights were measured."""
    root = tmp_path_factory.mktemp("ranked") / "store"
    what = ["--probes", probe_file, "--layers", "blocks[-1]"]
    run("--store", root, "ingest", "--path", family / "seed1", *what, "--revisions", "step0,step4", "--weight-ranks")
    run("--store", root, "ingest", "--path", family / "seed2", *what, "--revisions", "step0,step1")
    return root


def test_checkpoints_that_were_ingested_without_it_are_named(ranked: Path, tmp_path: Path, family: Path) -> None:
    root = tmp_path / "store"
    shutil.copytree(ranked, root)
    probes = Store(root).probe_sets()["name"].item()
    what = ["--probes", probes, "--layers", "blocks[-1]", "--revisions", "step8"]
    run("--store", root, "ingest", "--path", family / "seed1", *what)
    assert stored_ranks(Store(root)).attrs["not_measured_at"] == {"seed1": ["step8"]}
    assert "1 checkpoints of seed1" in run("--store", root, "analyze", "dimension", "--weights").stderr


def test_an_ingest_keeps_the_rank_of_every_matrix_of_every_checkpoint(ranked: Path, family: Path) -> None:
    found = stored_ranks(Store(ranked))
    assert found["run"].values.tolist() == ["seed1"]
    assert found["step"].values.tolist() == [0, 4]
    assert found.attrs == {"unavailable": [], "not_measured": ["seed2"], "not_measured_at": {"seed1": []}}
    for step in (0, 4):
        weights = load_file(family / "seed1" / f"step{step}" / "model.safetensors")
        matrices = {name: W for name, W in weights.items() if W.dim() > 1}
        assert set(found["tensor"].values) == set(matrices)
        for name, W in matrices.items():
            at = found.sel(run="seed1", step=step, tensor=name)
            assert float(at["stable_rank"]) == pytest.approx(of_svd(W), rel=1e-6)
            assert (int(at["rows"]), int(at["columns"])) == tuple(W.shape)
            assert at["revision"].item() == f"step{step}"


def test_weights_that_were_not_measured_are_unavailable(ranked: Path) -> None:
    with pytest.raises(Unavailable, match="no weights were measured of seed2: `replay ingest --weight-ranks`"):
        stored_ranks(Store(ranked), Choice(runs=["seed2"]))


def test_weights_are_measured_once_whatever_the_probes(
    ranked: Path, family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    original = weight_ranks

    def noting(weights: dict[str, torch.Tensor]) -> dict[str, WeightRank | str]:
        measured.append(len(weights))
        return original(weights)

    monkeypatch.setattr("replay.checkpoint.weight_ranks", noting)
    others = write_probes(tmp_path / "others.jsonl", 5)
    counts = []
    for revisions in ("step0,step4", "step0..step4"):
        run("--store", ranked, "ingest", "--path", family / "seed1", "--probes", others, "--revisions", revisions,
            "--weight-ranks")  # fmt: skip
        counts.append(len(measured))
    assert counts == [0, 2]  # step1 and step2


def test_ranks_are_refused_where_only_some_tensors_are_fetched() -> None:
    texts = ProbeSet("texts", (Probe("a"), Probe("b"), Probe("c")))
    with pytest.raises(InvalidInput, match="leave --partial out"):
        IngestRequest(probes=texts, weight_ranks=True, partial=True)
