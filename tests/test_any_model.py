"""Models that are no transformers, end to end: plain weights, a factory and arrays into a store."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

import cli
from replay import models
from replay.factories import read_factory
from store.catalog import Store

FACTORIES = """
from torch import nn


class Perceptron(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.act, self.out = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.act(self.fc1(x)))


def wider():
    return nn.Sequential(nn.Linear(6, 9))


def network():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
"""
X = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
STEPS = (0, 10, 100)


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


def weights_at(step: int, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of a `Perceptron` on its way from a start to a place of the seed's own."""
    start, way = (torch.Generator().manual_seed(number) for number in (seed, 100 + seed))
    shapes = {"fc1.weight": (8, 6), "fc1.bias": (8,), "out.weight": (3, 8), "out.bias": (3,)}
    return {
        name: torch.randn(shape, generator=start) + 0.1 * step**0.5 * torch.randn(shape, generator=way)
        for name, shape in shapes.items()
    }


def computed(step: int, *, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """What numpy computes of the layers of a `Perceptron`."""
    weights = {name: value.double().numpy() for name, value in weights_at(step, seed=seed).items()}
    hidden = (X @ weights["fc1.weight"].T + weights["fc1.bias"]).clip(0)
    return {"act": hidden, "out": hidden @ weights["out.weight"].T + weights["out.bias"]}


def plain(folder: Path, step: int, weights: dict[str, torch.Tensor]) -> None:
    torch.save(weights, folder / f"model_step{step:05d}.pt")


def wrapped(folder: Path, step: int, weights: dict[str, torch.Tensor]) -> None:
    held = {f"net.{name}": value for name, value in weights.items()}
    saved = {"state_dict": held, "global_step": step, "epoch": step // 10, "hyper_parameters": {"width": 8}}
    torch.save(saved, folder / f"epoch={step // 10}.ckpt")


def foldered(folder: Path, step: int, weights: dict[str, torch.Tensor]) -> None:
    (folder / f"checkpoint-{step}").mkdir()
    save_file(weights, folder / f"checkpoint-{step}" / "model.safetensors")


def write(folder: Path, save: Callable[[Path, int, dict[str, torch.Tensor]], None], *, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    for step in STEPS:
        save(folder, step, weights_at(step, seed=seed))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two runs, the factories and the probes are."""
    place = tmp_path_factory.mktemp("plain")
    (place / "nets.py").write_text(FACTORIES)
    np.savez(place / "points.npz", inputs=X, labels=["even", "odd"] * 20, ids=[f"p{i}" for i in range(40)])
    for seed in (0, 1):
        write(place / f"seed{seed}", plain, seed=seed)
    return place


def ingested(place: Path, *seeds: int, probes: str = "points.npz", model: str = "Perceptron") -> list[str]:
    paths = [argument for seed in seeds for argument in ("--path", str(place / f"seed{seed}"))]
    file = str(place / probes) if (place / probes).exists() else probes
    how = ["--model", f"{place / 'nets.py'}:{model}", "--probes", file, "--revisions", "all"]
    return ["ingest", *paths, *how]


LAYERS = ("--layers", "act", "--layers", "out")


@pytest.fixture(scope="module")
def filled(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the two runs; copy it before writing."""
    root = tmp_path_factory.mktemp("filled") / "store"
    result = run("--store", root, *ingested(place, 0, 1), *LAYERS)
    assert "6 checkpoints replayed" in result.stdout
    return root


@pytest.fixture
def copied(filled: Path, root: Path) -> Path:
    """A copy of it."""
    shutil.copytree(filled, root)
    return root


def values(root: Path, name: str, layer: str, revision: int) -> np.ndarray[Any, Any]:
    """The stored activations of one layer of one revision."""
    dataset = Store(root).activations(name, layers=f"{layer}:*")
    return np.asarray(dataset["activations"].values[revision, 0])


def segments(root: Path) -> dict[str, bytes]:
    folder = root / "segments"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_layer_of_every_step_is_what_numpy_computes(filled: Path) -> None:
    for seed in (0, 1):
        for number, step in enumerate(STEPS):
            for layer, wanted in computed(step, seed=seed).items():
                np.testing.assert_allclose(values(filled, f"seed{seed}", layer, number), wanted, rtol=1e-4, atol=1e-5)


def test_steps_labels_and_ids_are_coordinates(filled: Path) -> None:
    dataset = Store(filled).activations("seed1")
    assert list(dataset["step"].values) == list(STEPS)
    assert list(dataset["label"].values[:3]) == ["even", "odd", "even"]
    assert list(dataset["probe_id"].values[:3]) == list(dataset["text"].values[:3]) == ["p0", "p1", "p2"]
    assert (dataset.attrs["probes"], dataset.attrs["max_length"]) == ("points", 0)


def test_runs_of_plain_weights_can_be_compared(copied: Path) -> None:
    said = run("--store", copied, "analyze", "spread", "--layers", "act", "--json").stdout
    assert '"act:output:mean"' in said


def test_again_or_by_the_name_of_the_probes_nothing_is_replayed(
    copied: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Path] = []
    original = models.load_model

    def noting(folder: Path, **how: Any) -> Any:
        loaded.append(folder)
        return original(folder, **how)

    monkeypatch.setattr(models, "load_model", noting)
    before = segments(copied)
    for probes in ("points.npz", "points"):
        said = run("--store", copied, *ingested(place, 0, 1, probes=probes), *LAYERS)
        assert "0 checkpoints replayed, 6 already there" in said.stdout
    assert not loaded
    assert segments(copied) == before
    run("--store", copied, *ingested(place, 0, probes="points"), *LAYERS, "--layers", "fc1")
    assert len(loaded) == len(STEPS)


def test_lightning_files_and_step_folders_give_the_same_activations(copied: Path, place: Path, tmp_path: Path) -> None:
    paths = []
    for name, save in (("lightning", wrapped), ("trainer", foldered)):
        paths += ["--path", write(tmp_path / name, save)]
    run("--store", copied, *ingested(place), *paths, *LAYERS)
    store = Store(copied)
    for name in ("lightning", "trainer"):
        assert list(store.activations(name)["step"].values) == list(STEPS)
        for number in range(len(STEPS)):
            for layer in ("act", "out"):
                found = values(copied, name, layer, number)
                np.testing.assert_array_equal(found, values(copied, "seed0", layer, number))


def test_a_dry_run_tells_the_size_and_writes_nothing(root: Path, place: Path) -> None:
    said = run("--store", root, *ingested(place, 0), *LAYERS, "--dry-run").stdout
    assert f"3 checkpoints to replay, 0 B to fetch, about {3 * 40 * (8 + 3) * 4 / 1000:.1f} kB to store" in said
    assert not root.exists()


KILLED = """
import os, signal, sys
import store.commits
from cli import main
publish, n_done = store.commits.publish, 0

def publish_and_die(root, staged):
    global n_done
    publish(root, staged)
    n_done += staged.kind == "activations"
    if n_done == 3:
        os.kill(os.getpid(), signal.SIGKILL)

store.commits.publish = publish_and_die
main(sys.argv[1:])
"""


def test_an_ingest_killed_in_the_middle_goes_on_to_the_same_bytes(root: Path, place: Path, filled: Path) -> None:
    arguments = ["--store", str(root), *ingested(place, 0), *LAYERS]
    child = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert len(Store(root).activations("seed0")["revision"]) == 2
    assert "1 checkpoints replayed, 2 already there" in run(*arguments).stdout
    assert len(Store(root).activations("seed0")["revision"]) == 3
    assert segments(root).items() <= segments(filled).items()


def one_line(result: Result) -> str:
    said = [line for line in result.stderr.splitlines() if line.startswith("replay: ")]
    assert len(said) == 1, result.stderr
    return said[0]


def test_arrays_of_the_wrong_shape_end_in_one_line_before_anything_is_replayed(
    root: Path, place: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "narrow.npy", X[:, :5])
    said = one_line(run("--store", root, *ingested(place, 0, probes=str(tmp_path / "narrow.npy")), *LAYERS, code=1))
    assert "Perceptron does not take arrays of shape (probe, 5) and type float32: RuntimeError: mat1 and" in said
    assert Store(root).runs().empty


def test_weights_that_do_not_fit_the_factory_are_told_in_one_line_and_hide_nothing(copied: Path, place: Path) -> None:
    before, there = values(copied, "seed0", "out", 0), Store(copied).revisions("seed0")
    misfit = one_line(run("--store", copied, *ingested(place, 0, 1, model="wider"), "--layers", "0", code=1))
    assert misfit.startswith("replay: seed0 model_step00000.pt: Sequential: missing weights (2): 0.weight")
    assert "fc1.weight, fc1.bias, out.weight, out.bias" in misfit
    wrong = one_line(run("--store", copied, *ingested(place, 0), "--prefix", "nope", *LAYERS, code=1))
    assert "seed0 model_step00000.pt: no weight starts with 'nope.': there are fc1, out" in wrong
    assert Store(copied).revisions("seed0").equals(there)
    np.testing.assert_array_equal(values(copied, "seed0", "out", 0), before)
    np.testing.assert_allclose(before, computed(0)["out"], rtol=1e-4, atol=1e-5)


def test_one_checkpoint_that_does_not_fit_fails_alone_even_if_it_is_the_first(root: Path, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(FACTORIES)
    np.save(tmp_path / "points.npy", X)
    folder = write(tmp_path / "seed0", plain)
    torch.save({"other": torch.zeros(2)}, folder / "model_step00000.pt")
    said = run("--store", root, *ingested(tmp_path, 0, probes="points.npy"), *LAYERS, code=1)
    assert "2 checkpoints replayed, 0 already there, 0 aliases, 1 failed" in said.stdout
    np.testing.assert_allclose(values(root, "seed0", "out", 0), computed(10)["out"], rtol=1e-4, atol=1e-5)


def test_a_run_keeps_to_one_model(copied: Path, place: Path, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(FACTORIES.replace("ReLU", "Sigmoid"))
    there = Store(copied).revisions("seed0")
    how = ["--path", place / "seed0", "--probes", place / "points.npz", *LAYERS]
    for revisions in ("last:1", "all"):
        given = [*how, "--model", f"{tmp_path / 'nets.py'}:Perceptron", "--revisions", revisions]
        said = one_line(run("--store", copied, "ingest", *given, code=1))
        assert f"seed0 was ingested with another model (--model {place / 'nets.py'}:Perceptron)" in said
        assert "use another --store, or give a copy of the folder another name" in said
    assert Store(copied).revisions("seed0").equals(there)


def test_a_factory_that_was_changed_is_another_model_unless_nothing_of_the_old_was_replayed(
    root: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "points.npy", X)
    write(tmp_path / "seed0", plain)
    arguments = ["--store", root, *ingested(tmp_path, 0, probes="points.npy"), *LAYERS]
    broken = FACTORIES.replace("self.fc1(x)", "self.fc1(x)[:, : 8 if len(x) < 3 else 1]")  # passes the trial with two
    for text, code in ((broken, 1), (FACTORIES, 0)):
        (tmp_path / "nets.py").write_text(text)
        run(*arguments, code=code)
    (tmp_path / "nets.py").write_text(FACTORIES.replace("ReLU", "Sigmoid"))
    assert "nets.py:Perceptron, which was changed since)" in one_line(run(*arguments, code=1))


def test_a_run_of_transformers_takes_no_factory_and_the_reverse(root: Path, tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=4, patch_size=2,
        num_channels=1,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    model.save_pretrained(tmp_path / "vit" / "step3")
    save_file(model.state_dict(), tmp_path / "vit" / "step3" / "model.safetensors", metadata={"format": "pt"})
    np.save(tmp_path / "images.npy", np.random.default_rng(3).normal(size=(9, 1, 4, 4)))
    (tmp_path / "vit.py").write_text(
        "import transformers\n\n\ndef make():\n"
        f"    config = transformers.ViTConfig.from_pretrained({str(tmp_path / 'vit' / 'step3')!r})\n"
        "    return transformers.ViTForImageClassification(config)\n"
    )
    plainly = ["ingest", "--path", tmp_path / "vit", "--revisions", "all", "--probes", tmp_path / "images.npy"]
    with_model = [*plainly, "--model", f"{tmp_path / 'vit.py'}:make"]
    run("--store", root, *plainly)
    said = one_line(run("--store", root, *with_model, code=1))
    assert "vit was ingested with another model (one of transformers)" in said
    other = tmp_path / "other"
    run("--store", other, *with_model)
    said = one_line(run("--store", other, *plainly, code=1))
    assert f"vit was ingested with another model (--model {tmp_path / 'vit.py'}:make)" in said


def test_runs_without_any_step_say_so_and_name_the_option(root: Path, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(FACTORIES)
    np.save(tmp_path / "points.npy", X)
    for seed in (0, 1):
        (tmp_path / f"seed{seed}").mkdir()
        for name in ("early", "late"):
            torch.save(weights_at(10, seed=seed), tmp_path / f"seed{seed}" / f"{name}.pt")
    run("--store", root, *ingested(tmp_path, 0, 1, probes="points.npy"), *LAYERS)
    said = one_line(run("--store", root, "analyze", "spread", code=1))
    assert "none of the revisions of seed0, seed1 has a training step (early, for one)" in said
    assert "--step-regex" in said


def test_too_few_probes_for_any_analysis_are_noted(root: Path, place: Path, tmp_path: Path) -> None:
    for n_probes in (2, 3):
        np.save(tmp_path / f"p{n_probes}.npy", X[:n_probes])
        said = run("--store", root, *ingested(place, 0, probes=str(tmp_path / f"p{n_probes}.npy")), *LAYERS)
        assert ("'p2' has fewer than 3 probes, too few for any analysis" in said.stderr) == (n_probes == 2)


def test_texts_for_a_factory_and_arrays_for_a_model_of_text_are_refused(
    root: Path, place: Path, tmp_path: Path
) -> None:
    said = one_line(run("--store", root, *ingested(place, 0, probes="topics"), code=1))
    assert "'topics' are texts and" in said
    assert "nets.py:Perceptron has no tokenizer: give array probes" in said
    transformers.GPTNeoXConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(
        tmp_path / "text" / "step0"
    )
    save_file({"any": torch.zeros(1)}, tmp_path / "text" / "step0" / "model.safetensors")
    given = ("--path", tmp_path / "text", "--probes", place / "points.npz")
    said = one_line(run("--store", root, "ingest", *given, code=1))
    assert "text is a model of text and no array can be given for one: give texts" in said


def test_a_reduction_that_arrays_have_not_is_refused(root: Path, place: Path) -> None:
    said = one_line(run("--store", root, *ingested(place, 0), "--layers", "out:output:all", code=1))
    assert "out:output:all: arrays have no tokens of their own: choose another reduction than all" in said


@pytest.fixture
def images(tmp_path: Path, place: Path) -> list[str]:
    """What ingests a convolutional network that has seen some images, on others with labels."""
    network = read_factory(f"{place / 'nets.py'}:network").build()
    with torch.no_grad():
        network(torch.randn(20, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
    folder = tmp_path / "network"
    folder.mkdir()
    save_file(network.state_dict(), folder / "step5.safetensors")
    pixels = np.random.default_rng(3).normal(size=(9, 1, 4, 4)).astype(np.float32)
    np.savez(tmp_path / "images.npz", x=pixels, labels=np.arange(9) % 3)
    given = ["--path", str(folder), "--model", f"{place / 'nets.py'}:network", "--probes", str(tmp_path / "images.npz")]
    return ["ingest", *given, "--revisions", "all"]


def test_images_need_a_reduction_and_are_replayed_with_stored_statistics(
    root: Path, images: list[str], tmp_path: Path
) -> None:
    said = one_line(run("--store", root, *images, "--layers", "0", code=1))
    assert "choose spatial_mean" in said
    run("--store", root, *images, "--layers", "0:output:spatial_mean", "--layers", "1:output:flatten", "--layers", "4")
    factory = read_factory(images[images.index("--model") + 1])
    network = factory.build().eval()
    network.load_state_dict(load_file(tmp_path / "network" / "step5.safetensors"))
    with torch.no_grad():
        conv = network.get_submodule("0")(torch.from_numpy(np.load(tmp_path / "images.npz")["x"]))
        norm = network.get_submodule("1")(conv)
    dataset = Store(root).activations("network", layers="*spatial_mean")
    assert list(dataset["label"].values) == [str(i % 3) for i in range(9)]
    np.testing.assert_allclose(dataset["activations"].values[0, 0], conv.mean((2, 3)), rtol=1e-5, atol=1e-6)
    flat = Store(root).activations("network", layers="*flatten")["activations"].values[0, 0]
    np.testing.assert_allclose(flat, norm.flatten(1), rtol=1e-5, atol=1e-6)


def test_a_vision_model_of_transformers_takes_images_and_no_text(root: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=4, patch_size=2,
        num_channels=1,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit" / "step3")
    pixels = np.random.default_rng(3).normal(size=(9, 1, 4, 4))
    np.save(tmp_path / "images.npy", pixels)
    base = ("--store", root, "ingest", "--path", tmp_path / "vit", "--revisions", "all")
    assert "vit takes pixel_values and no text: give array probes" in one_line(run(*base, code=1))
    run(*base, "--probes", tmp_path / "images.npy")
    model = transformers.ViTModel.from_pretrained(tmp_path / "vit" / "step3", add_pooling_layer=False).eval()
    with torch.no_grad():
        states = model(torch.from_numpy(pixels).float(), output_hidden_states=True).hidden_states
    found = Store(root).activations("vit")["activations"].values[0]
    for number in (0, 1):
        np.testing.assert_allclose(found[number], states[number + 1].mean(dim=1), rtol=1e-4, atol=1e-5)


def test_array_probes_are_added_under_a_name_and_listed(root: Path, place: Path) -> None:
    said = run("--store", root, "probes", "add", place / "points.npz", "--name", "mine").stdout
    assert said.startswith("mine: 40 probes, 2 labels, digest ")
    assert said.endswith(", added\n")
    listed = run("--store", root, "ls", "probes").stdout.splitlines()
    assert listed[1].split()[:3] == ["mine", "40", "2"]
