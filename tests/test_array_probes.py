"""Array probes: read without running anything, known by their content, kept, and replayed in batches."""

import hashlib
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from replay.arrays import ArrayProbes, read_arrays, read_probe_file
from replay.batches import plan_array_batches
from replay.capture import replay_arrays, try_arrays
from replay.layers import LayerSpec, ResolvedLayer, expand_layers
from replay.opening import open_store
from replay.plan import add_probes, choose_probes
from replay.probes import ProbeSet
from store.catalog import Store
from store.errors import InvalidLayer, InvalidProbes, StoreDamaged
from store.keys import inputs_key
from store.segments import segment_path

X = np.random.default_rng(0).normal(size=(23, 6)).astype(np.float32)


class Images(nn.Module):
    """A convolution, a batch norm with statistics of its own, dropout, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout()
        self.head = nn.Linear(3 * 4 * 4, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map (image, 2, 4, 4) to (image, 5)."""
        return self.head(self.drop(self.norm(self.conv(images)).relu()).flatten(1))  # type: ignore[no-any-return]


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))


def layers(*paths: str) -> list[ResolvedLayer]:
    return [ResolvedLayer(LayerSpec.parse(path), path.partition(":")[0]) for path in paths]


def refusal(path: Path) -> str:
    with pytest.raises(InvalidProbes) as caught:
        read_arrays(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    return said.removeprefix(f"{path}: ")


def test_a_plain_array_is_read_as_it_is(tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", X)
    probes = read_arrays(tmp_path / "mine.npy")
    assert (probes.name, len(probes), probes.labels[0], probes.notes()) == ("mine", 23, None, [])
    assert probes.values.dtype == np.float32
    np.testing.assert_array_equal(probes.values, X)
    assert probes.rows[12] == ("array 12", None, None)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("float16", (3, 1)), ("float32", (3, 2, 4, 5)), (">f8", (3, 4)), ("uint8", (3, 2, 5)), ("int64", (300, 2))],
)
def test_numbers_keep_their_type_and_shape_through_file_and_store(
    tmp_path: Path, root: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    values = np.asfortranarray(np.arange(np.prod(shape)).reshape(shape)).astype(dtype)
    np.save(tmp_path / "n.npy", values)
    probes = read_arrays(tmp_path / "n.npy")
    store = open_store(root, write=True)
    assert add_probes(store, probes)
    kept = choose_probes(Store(root), "n")
    assert isinstance(kept, ArrayProbes)
    assert kept.values.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(kept.values, values)
    assert kept.digest == probes.digest


@pytest.mark.parametrize("key", ["inputs", "x", "X", "anything"])
def test_an_archive_holds_probes_labels_and_ids(tmp_path: Path, key: str) -> None:
    arrays: dict[str, Any] = {key: X, "labels": np.arange(23) % 3, "ids": [f"p{i}" for i in range(23)]}
    np.savez(tmp_path / "a.npz", **arrays)
    probes = read_probe_file(tmp_path / "a.npz", name="mine")
    assert isinstance(probes, ArrayProbes)
    assert probes.name == "mine"
    assert probes.rows[4] == ("p4", "1", "p4")
    np.testing.assert_array_equal(probes.values, X)


def test_labels_may_be_words_and_an_empty_one_is_none(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", X=X[:2], labels=["cat", ""])
    assert read_arrays(tmp_path / "a.npz").labels == ("cat", None)


def test_what_is_not_used_and_what_stands_twice_is_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", X=X[[0, 1, 0, 1, 2]], y=np.arange(5))
    assert read_arrays(tmp_path / "a.npz").notes() == [
        "not used of the file: y (labels are read from 'labels', ids from 'ids')",
        "kept 2 of 5 arrays that equal an earlier one, first array 2",
    ]


def test_a_file_is_read_by_what_its_suffix_says(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    assert isinstance(read_probe_file(tmp_path / "a.txt"), ProbeSet)
    np.save(tmp_path / "a.npy", X)
    (tmp_path / "a.npy").rename(tmp_path / "A.NPY")
    assert isinstance(read_probe_file(tmp_path / "A.NPY"), ArrayProbes)


class Trap:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('this was run')",))


@pytest.mark.parametrize("kind", ["npy", "npz", "labels", "bare pickle"])
def test_objects_are_refused_and_never_run(tmp_path: Path, kind: str) -> None:
    objects = np.array([Trap(), 1], dtype=object)
    path = tmp_path / ("a.npy" if kind in ("npy", "bare pickle") else "a.npz")
    if kind == "npy":
        np.save(path, objects, allow_pickle=True)
    elif kind == "bare pickle":
        path.write_bytes(pickle.dumps(Trap()))
    else:
        arrays: dict[str, Any] = {"x": objects} if kind == "npz" else {"x": X[:2], "labels": objects}
        np.savez(path, **arrays)
    wanted = "no .npy or .npz file" if kind == "bare pickle" else "holds Python objects, which are never loaded: save"
    assert refusal(path).startswith(wanted)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.float32(3), "an array of shape (), expected (probe, …) with at least one number"),
        (X[:, 0], "an array of shape (23,), expected (probe, …) with at least one number: write X[:, None]"),
        (X[:0], "an array of shape (0, 6), expected"),
        (X[:, :0], "an array of shape (23, 0), expected"),
        (X > 0, "holds bool, not numbers a model takes: save float32, float64 or integers"),
        (X.astype(complex), "holds complex128, not numbers"),
        (np.array([["a"]]), "holds <U1, not numbers"),
        (np.zeros((2, 1), dtype=[("a", "f4")]), "holds [('a', '<f4')], not numbers"),
    ],
)
def test_arrays_that_are_no_probes_are_refused_in_one_line(tmp_path: Path, values: NDArray[Any], said: str) -> None:
    np.save(tmp_path / "a.npy", values)
    assert refusal(tmp_path / "a.npy").startswith(said)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_refused_with_its_place(tmp_path: Path, wrong: float) -> None:
    values = np.zeros((4, 3, 2))
    values[2, 1, 0] = wrong
    np.save(tmp_path / "a.npy", values)
    assert refusal(tmp_path / "a.npy") == f"holds {wrong} at [2, 1, 0]: probes have to be finite"


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"a": X, "b": X}, "which of its arrays are the probes? It has a, b: call them inputs"),
        ({"x": X, "X": X}, "which of its arrays are the probes? It has x, X: call them inputs"),
        ({}, "which of its arrays are the probes? It has none: call them inputs"),
        ({"labels": np.arange(3)}, "which of its arrays are the probes? It has labels"),
        ({"x": X, "labels": np.arange(3)}, "3 labels for 23 probes: give one each"),
        ({"x": X, "ids": np.arange(24)}, "24 ids for 23 probes: give one each"),
        ({"x": X, "labels": X[:, 0]}, "labels are float32 of shape (23,): expected strings or integers (probe,)"),
        ({"x": X, "labels": np.eye(23, dtype=int)}, "labels are int64 of shape (23, 23): expected strings or integers"),
    ],
)
def test_archives_that_are_unclear_are_refused_in_one_line(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    assert refusal(tmp_path / "a.npz").startswith(said)


@pytest.mark.parametrize("member", ["inputs", "labels"])
def test_a_member_of_an_archive_that_is_no_array_is_refused_in_one_line(tmp_path: Path, member: str) -> None:
    arrays: dict[str, Any] = {"x": X} if member == "labels" else {}
    np.savez(tmp_path / "a.npz", **arrays)
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as opened:
        opened.writestr(member, "words")
    assert refusal(tmp_path / "a.npz") == f"{member} in it is no array: write it with np.savez"


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_file_cut_short_empty_absent_or_of_another_kind_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    assert refusal(path) == "no such file"
    (np.save if suffix == "npy" else np.savez)(path, X)
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert refusal(path) == "no .npy or .npz file that can be read, it may be cut short"
    path.unlink()
    path.mkdir()
    assert refusal(path) == "a folder, not a file: name one file in it"


def test_the_digest_is_that_of_type_shape_values_labels_and_ids() -> None:
    little = ArrayProbes("any", np.array([[1, 2], [3, 4]], dtype=">i4"), ("a", None), (None, "é"))
    head = json.dumps(["replay array probes 1", "<i4", [2, 2], ["a", None], [None, "é"]], separators=(",", ":"))
    numbers = b"".join(number.to_bytes(4, "little") for number in (1, 2, 3, 4))
    assert little.digest == hashlib.sha256(head.encode() + numbers).hexdigest()


def test_the_digest_tells_content_and_order_apart_and_not_the_name() -> None:
    labels = tuple(str(i) for i in range(23))
    base = ArrayProbes("one", X, labels)
    changed = X.copy()
    changed[3, 2] = np.nextafter(changed[3, 2], np.float32(9))
    others = [
        ArrayProbes("one", X[::-1], labels),
        ArrayProbes("one", X, labels[::-1]),
        ArrayProbes("one", X, (), labels),
        ArrayProbes("one", X),
        ArrayProbes("one", changed, labels),
        ArrayProbes("one", X.astype(np.float64), labels),
        ArrayProbes("one", X.reshape(23, 2, 3), labels),
        ArrayProbes("one", X[:22], labels[:22]),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == len(others) + 1
    assert ArrayProbes("two", np.asfortranarray(X), labels).digest == base.digest


def test_a_store_keeps_arrays_with_labels_and_ids_and_gives_them_back(root: Path) -> None:
    probes = ArrayProbes("mine", X, tuple("ab" * 11 + "c"), (None, *(f"p{i}" for i in range(1, 23))))
    store = open_store(root, write=True)
    assert add_probes(store, probes)
    assert not add_probes(store, probes)
    kept = choose_probes(store, "mine")
    assert isinstance(kept, ArrayProbes)
    assert (kept.digest, kept.labels, kept.ids, kept.rows) == (probes.digest, probes.labels, probes.ids, probes.rows)
    with pytest.raises(InvalidProbes, match="already has these very probes under the name 'mine'"):
        add_probes(store, ArrayProbes("other", X, probes.labels, probes.ids))
    assert add_probes(store, ArrayProbes("other", X + 1))


def test_arrays_that_somebody_removed_are_missed_and_come_back_with_their_file(root: Path) -> None:
    probes = ArrayProbes("mine", X)
    store = open_store(root, write=True)
    add_probes(store, probes)
    folder = segment_path(root, inputs_key(probes.digest))
    folder.rename(root / "elsewhere")
    with pytest.raises(StoreDamaged, match="is gone although the index names it"):
        choose_probes(store, "mine")
    assert not add_probes(store, probes)
    kept = choose_probes(store, "mine")
    assert isinstance(kept, ArrayProbes)
    np.testing.assert_array_equal(kept.values, X)


@pytest.mark.parametrize(
    ("shape", "dtype", "size"),
    [
        ((1000, 64), np.float32, 512),  # never more probes than tokens
        ((1000, 3, 32, 32), np.float32, 170),  # 512 x 1024 / 3072
        ((5, 3, 1024, 1024), np.float16, 1),  # one at least
        ((1000, 100), np.int64, 5),  # ids are as large as tokens
    ],
)
def test_batches_of_arrays_are_bounded_and_in_order(shape: tuple[int, ...], dtype: type, size: int) -> None:
    batches = plan_array_batches(np.empty(shape, dtype=dtype), 512)
    assert [index for batch in batches for index in batch] == list(range(shape[0]))
    assert {len(batch) for batch in batches[:-1]} <= {size}
    assert 1 <= len(batches[-1]) <= size


def test_a_perceptron_gives_what_numpy_computes_for_every_batch_size() -> None:
    model = perceptron()
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    first = X.astype(float) @ weights["0.weight"].T + weights["0.bias"]
    wanted = {"0": first, "1": first.clip(0), "2": first.clip(0) @ weights["2.weight"].T + weights["2.bias"]}
    for batch_tokens in (1, 4, 512):
        found = replay_arrays(model, X, layers("0", "1", "2"), batch_tokens=batch_tokens)
        for name, values in wanted.items():
            np.testing.assert_allclose(found[f"{name}:output:mean"], values, rtol=1e-5, atol=1e-6)


def test_images_are_replayed_in_eval_mode_and_the_model_keeps_its_modes() -> None:
    torch.manual_seed(0)
    model = Images()
    model(torch.randn(50, 2, 4, 4) + 3)  # moves the running statistics
    images = np.random.default_rng(1).normal(size=(7, 2, 4, 4))
    asked = expand_layers(model, ["conv:output:spatial_mean", "norm:output:flatten", "head"])
    alone = np.concatenate([replay_arrays(model, image[None], asked)["head:output:mean"] for image in images])
    assert all(module.training for module in model.modules())
    found = replay_arrays(model, images, asked, batch_tokens=3)
    np.testing.assert_allclose(found["head:output:mean"], alone, rtol=1e-5, atol=1e-6)
    model.eval()
    with torch.no_grad():
        conv = model.conv(torch.from_numpy(images).float())
        np.testing.assert_allclose(found["conv:output:spatial_mean"], conv.mean((2, 3)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found["norm:output:flatten"], model.norm(conv).flatten(1), rtol=1e-5, atol=1e-6)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    model, asked = perceptron(), layers("0", "2")
    n_threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(replay_arrays(model, X, asked, batch_tokens=4))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(n_threads)
    for result in results[1:]:
        for name, values in result.items():
            np.testing.assert_array_equal(values, results[0][name])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_floats_are_given_the_type_of_the_model(dtype: torch.dtype) -> None:
    model = perceptron().to(dtype)
    (found,) = replay_arrays(model, X.astype(np.float64), layers("2")).values()
    with torch.no_grad():
        wanted = model(torch.from_numpy(X.astype(np.float64)).to(dtype))
    np.testing.assert_array_equal(found, wanted.float())


def test_integers_are_given_as_they_are() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 3))
    ids = np.random.default_rng(0).integers(0, 10, size=(9, 5))
    (found,) = replay_arrays(model, ids, layers("0")).values()
    table = model.state_dict()["0.weight"].numpy()
    np.testing.assert_allclose(found, table[ids].mean(axis=1), rtol=1e-5)
    with pytest.raises(InvalidProbes, match=r"\(probe, 6\) and type uint8 \(integers are given as they are: save flo"):
        replay_arrays(perceptron(), X.clip(0).astype(np.uint8), layers("0"))


def test_arrays_of_the_wrong_width_end_in_one_line_that_names_shape_and_reason() -> None:
    for use in (replay_arrays, try_arrays):
        with pytest.raises(InvalidProbes) as caught:
            use(perceptron(), X[:, :5], layers("2"))
        said = str(caught.value)
        assert said.startswith(
            "Sequential does not take arrays of shape (probe, 5) and type float32: RuntimeError: mat"
        )
        assert "\n" not in said


def test_a_model_that_mixes_probes_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(0, 1), nn.Linear(3, 2))
    for use in (replay_arrays, try_arrays):
        with pytest.raises(InvalidLayer, match=r"^1:output:mean gives \d+ rows for \d+ probes: it has not one a probe"):
            use(model, X.reshape(23, 2, 3), layers("1"))


def test_a_trial_tells_widths_also_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = Images()
    images = np.zeros((9, 2, 4, 4))
    asked = layers("conv:output:flatten", "norm:output:spatial_mean", "head")
    wanted = {"conv:output:flatten": 48, "norm:output:spatial_mean": 3, "head:output:mean": 5}
    assert try_arrays(model, images, asked) == wanted
    assert try_arrays(Images(), images, asked) == wanted
    assert all(module.training for module in model.modules())
