"""Layers by architecture: where an MLP, a CNN, a transformer or a ViT keeps its blocks, and what they give."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner, Result
from hub import Hub
from small_models import small_model
from torch import nn

import cli
from replay.anatomy import find_anatomy
from replay.capture import ActivationExtractor
from replay.layers import expand_layers, n_blocks, resolve_layer
from replay.outline import outline_layers
from replay.pooling import pool
from store.errors import InvalidLayer, UnknownLayer

MLP = """
import torch
from torch import nn

class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.out = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        if x.mean() > 100:
            raise ValueError("too bright")
        return self.out(torch.relu(self.fc2(torch.relu(self.fc1(x)))))
"""


class Residual(nn.Module):
    """The basic block of a ResNet."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, padding=1, stride=n_out // n_in), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, padding=1), nn.BatchNorm2d(n_out)
        self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride=n_out // n_in), nn.BatchNorm2d(n_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return torch.relu(y + self.downsample(x))


class ResNet(nn.Module):
    """Named as torchvision names it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(Residual(4, 4), Residual(4, 4))
        self.layer2 = nn.Sequential(Residual(4, 8), Residual(8, 8))
        self.layer3 = nn.Sequential(Residual(8, 16), Residual(16, 16))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: torch.Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


class Convolutions(nn.Module):
    """Named as AlexNet and VGG are."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3)
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(6 * 25, 7), nn.ReLU(), nn.Linear(7, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.features(x))
        return logits


class Attention(nn.Module):
    """A block of a ViT that transformers does not know."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        out: torch.Tensor = x + self.mlp(x)
        return out


class Patches(nn.Module):
    """Cuts an image into tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, 8, stride=8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return tokens


class Vit(nn.Module):
    """Its blocks stand in a Sequential, as timm has them."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.patch_embed, self.name = Patches(8), name
        self.add_module(name, nn.Sequential(*(Attention(8) for _ in range(3))))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.get_submodule(self.name)(self.patch_embed(x))
        logits: torch.Tensor = self.head(self.norm(x)[:, 0])
        return logits


class Encoder(nn.Module):
    """torch's own transformer over vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, norm=nn.LayerNorm(8))
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.encoder(self.embed(x)).mean(1))
        return logits


class Recurrent(nn.Module):
    """Words into an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.rnn, self.out = nn.Embedding(10, 4), nn.LSTM(4, 6, 2, batch_first=True), nn.Linear(6, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.out(self.rnn(self.words(ids))[0][:, -1])
        return logits


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def wrapped() -> nn.Module:
    model = nn.Module()
    model.net = mlp()
    model.forward = model.net.forward
    return model


def staged() -> nn.Module:
    stages = (nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU()) for _ in range(2))
    return nn.Sequential(*stages, nn.Linear(6, 3))


class Normalised(nn.Module):
    """An MLP whose hidden layers keep what their weights are made of in lists."""

    def __init__(self) -> None:
        super().__init__()
        normalise = nn.utils.parametrizations.spectral_norm
        self.fc1, self.fc2 = normalise(nn.Linear(6, 5)), normalise(nn.Linear(5, 4))
        self.out = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.out(self.fc2(self.fc1(x).relu()).relu())
        return logits


def hf_vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8
    )
    model: nn.Module = transformers.ViTModel(config, add_pooling_layer=False)
    return model


IMAGES = (2, 3, 16, 16)
# model: shape of an input, where the blocks are, and what each gives
BLOCKS: list[tuple[Callable[[], nn.Module], tuple[int, ...], list[str], list[tuple[int, ...]]]] = [
    (mlp, (2, 6), ["0", "2", "4"], [(2, 5), (2, 4), (2, 3)]),
    (wrapped, (2, 6), ["net.0", "net.2", "net.4"], [(2, 5), (2, 4), (2, 3)]),
    (staged, (2, 6), ["0", "1", "2"], [(2, 6), (2, 6), (2, 3)]),
    (Normalised, (2, 6), ["fc1", "fc2", "out"], [(2, 5), (2, 4), (2, 3)]),
    (ResNet, IMAGES, ["layer1", "layer2", "layer3"], [(2, 4, 16, 16), (2, 8, 8, 8), (2, 16, 4, 4)]),
    (
        Convolutions,
        IMAGES,
        ["features.0", "features.4", "classifier.1", "classifier.3"],
        [(2, 4, 14, 14), (2, 6, 5, 5), (2, 7), (2, 5)],
    ),
    (lambda: Vit("blocks"), IMAGES, ["blocks.0", "blocks.1", "blocks.2"], [(2, 4, 8)] * 3),
    (lambda: Vit("trunk"), IMAGES, ["trunk.0", "trunk.1", "trunk.2"], [(2, 4, 8)] * 3),
    (Encoder, (2, 7, 5), ["encoder.layers.0", "encoder.layers.1", "encoder.layers.2"], [(2, 7, 8)] * 3),
    (hf_vit, IMAGES, ["layers.0", "layers.1", "layers.2"], [(2, 5, 8)] * 3),
]


def flat(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], int(np.prod(shape[1:]))


@pytest.mark.parametrize(("make", "given", "paths", "shapes"), BLOCKS)
def test_blocks_are_found_in_every_architecture_and_give_what_they_should(
    make: Callable[[], nn.Module], given: tuple[int, ...], paths: list[str], shapes: list[tuple[int, ...]]
) -> None:
    model = make()
    layers = expand_layers(model, reduce="flatten")
    assert [layer.module for layer in layers] == paths
    assert n_blocks(model) == len(paths)
    for i, path in enumerate(paths):
        assert resolve_layer(model, f"blocks[{i}]") is find_anatomy(model).base.get_submodule(path)
    rows = ActivationExtractor([layer.spec for layer in layers]).extract_once(model, torch.randn(given))
    assert [tuple(values.shape) for values in rows.values()] == [flat(shape) for shape in shapes]


def test_names_are_paths_where_no_list_holds_the_blocks_and_aliases_where_one_does() -> None:
    assert [str(layer.spec) for layer in expand_layers(mlp())] == ["0:output:mean", "2:output:mean", "4:output:mean"]
    assert [layer.spec.path for layer in expand_layers(Vit("trunk"))] == ["blocks[0]", "blocks[1]", "blocks[2]"]
    asked = ["blocks[-1]", "blocks[0:2]", "layer*.0", "blocks.0[1].conv1", "blocks[*].1.bn2"]
    assert [layer.spec.path for layer in expand_layers(ResNet(), asked)] == [
        "layer1",
        "layer1.0",
        "layer1.1.conv1",
        "layer1.1.bn2",
        "layer2",
        "layer2.0",
        "layer2.1.bn2",
        "layer3",
        "layer3.0",
        "layer3.1.bn2",
    ]


def test_an_embedding_and_a_final_norm_are_named_where_there_are_some() -> None:
    assert find_anatomy(Vit("trunk")).aliases == {"blocks": "trunk", "embed": "patch_embed", "final_norm": "norm"}
    assert find_anatomy(Encoder()).aliases == {
        "blocks": "encoder.layers",
        "embed": "embed",
        "final_norm": "encoder.norm",
    }
    assert find_anatomy(Recurrent()).aliases == {"embed": "words"}
    assert [layer.module for layer in expand_layers(Recurrent())] == ["rnn", "out"]
    assert find_anatomy(ResNet()).aliases == {}


def test_parts_of_torchs_own_encoder_are_captured_too() -> None:
    model, x = Encoder().eval(), torch.randn(2, 7, 5)
    extractor = ActivationExtractor(["blocks[0].linear1:output:all", "blocks[0]:input:all"])
    hidden, before = extractor.extract_once(model, x).values()
    first = model.encoder.layers[0]
    y = first.norm1(before.view(2, 7, 8) + first.self_attn(*[before.view(2, 7, 8)] * 3)[0])
    assert torch.allclose(hidden.view(2, 7, 16), first.linear1(y), atol=1e-6)


def test_nothing_behind_unlisted_blocks_is_left_out() -> None:
    model = Recurrent()
    assert find_anatomy(model).beyond([model.words]) == ()


@pytest.mark.parametrize("path", ["blocks", "blocks[3]", "blocks[-4]", "blocks.first"])
def test_a_block_that_is_not_there_is_answered_with_those_that_are(path: str) -> None:
    with pytest.raises(UnknownLayer, match=r"blocks\[0\] is layer1, blocks\[1\] is layer2, blocks\[2\] is layer3"):
        expand_layers(ResNet(), [path])


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 7), (2, 3)])
def test_places_are_averaged_or_kept_as_numpy_would(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    flattened, averaged = (pool(x, None, reduce=reduce) for reduce in ("flatten", "spatial_mean"))
    assert np.array_equal(flattened.numpy(), x.numpy().reshape(2, -1))
    assert np.allclose(averaged.numpy(), x.numpy().reshape(2, 3, -1).mean(axis=2), atol=1e-6)
    assert flattened.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


def test_images_are_never_reduced_without_a_choice() -> None:
    for reduce in ("mean", "last_token", "first_token", "all"):
        with pytest.raises(InvalidLayer, match=f"\\(2, 4, 16, 16\\), and {reduce} is over tokens: choose spat"):
            ActivationExtractor([f"blocks[0]:output:{reduce}"]).extract_once(ResNet(), torch.randn(IMAGES))


def test_texts_have_no_places() -> None:
    model, ids = small_model("gpt2"), torch.ones(2, 4, dtype=torch.long)
    for reduce in ("flatten", "spatial_mean"):
        with pytest.raises(InvalidLayer, match=f"one row a token, and {reduce} is for images"):
            ActivationExtractor([f"blocks[0]:output:{reduce}"]).extract_once(
                model, input_ids=ids, attention_mask=torch.ones_like(ids)
            )


@pytest.mark.parametrize(("make", "given", "paths", "shapes"), BLOCKS)
def test_an_outline_has_the_shapes_and_counts_of_the_real_forward(
    make: Callable[[], nn.Module], given: tuple[int, ...], paths: list[str], shapes: list[tuple[int, ...]]
) -> None:
    with torch.device("meta"):
        skeleton = make().eval()
    outline = outline_layers(skeleton, torch.zeros(1, *given[1:]))
    assert outline.reason is None
    model = make()
    found = {layer.module: layer for layer in outline.layers}
    assert [found[path].shape for path in paths] == [(1, *shape[1:]) for shape in shapes]
    for path in paths:
        assert found[path].n_parameters == sum(p.numel() for p in model.get_submodule(path).parameters())
    assert outline.n_parameters == sum(p.numel() for p in model.parameters())


def replay(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, ["layers", *map(str, arguments)])


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "networks.py").write_text(MLP)
    return tmp_path / "networks.py"


def test_the_layers_of_a_factory_are_printed_with_shapes(networks: Path) -> None:
    result = replay("--model", "networks.py:Mlp", "--shape", "6")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["layer", "module", "class", "output", "parameters"]
    assert lines[1:4] == [
        ["fc1", "fc1", "Linear", "1", "x", "5", "35"],
        ["fc2", "fc2", "Linear", "1", "x", "4", "24"],
        ["out", "out", "Linear", "1", "x", "3", "15"],
    ]
    assert result.stdout.splitlines()[4] == "Mlp: 74 parameters, outputs for an input of 1 x 6"
    assert result.stderr == ""
    assert not (networks.parent / "replay-store").exists()


def test_array_probes_tell_the_shape_and_without_them_shapes_are_dashes(networks: Path) -> None:
    np.save("probes.npy", np.ones((4, 6)))
    given = json.loads(replay("--model", "networks.py:Mlp", "--probes", "probes.npy", "--json").stdout)
    assert [layer["shape"] for layer in given["layers"]] == [[1, 5], [1, 4], [1, 3]]
    assert given["input_shape"] == [1, 6]
    result = replay("--model", "networks.py:Mlp", "--layers", "blocks[-1]")
    assert result.stdout.splitlines()[1].split() == ["out", "out", "Linear", "-", "15"]
    assert result.stderr == "no shapes: no example of an input is known; give --shape 3,32,32 or --probes FILE\n"


def test_weights_that_do_not_fit_a_factory_are_seen_before_an_ingest(networks: Path) -> None:
    Path("run").mkdir()
    torch.save({"fc1.weight": torch.zeros(5, 6), "fc1.bias": torch.zeros(5)}, "run/step1.pt")
    result = replay("--path", "run", "--model", "networks.py:Mlp")
    assert result.exit_code == 1
    assert result.stderr == (
        "replay: Mlp: missing weights (4): fc2.weight, fc2.bias, out.weight, out.bias; name the model with --model "
        "(in run step1)\n"
    )


def test_a_hub_is_asked_for_no_weights(hub: Hub, family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for step in (1, 8):
        hub.commit("layers/neox", f"step{step}", folder=family / "seed1" / f"step{step}")
    before = len(hub.requests())
    result = replay("--repo", "layers/neox", "--layers", "blocks[*].mlp", "--layers", "embed", "--json")
    layers = json.loads(result.stdout)["layers"]
    assert [(layer["layer"], layer["shape"]) for layer in layers] == [
        ("embed", [1, 8, 32]),
        ("blocks[0].mlp", [1, 8, 32]),
        ("blocks[1].mlp", [1, 8, 32]),
        ("blocks[2].mlp", [1, 8, 32]),
    ]
    asked = [line.path for line in hub.requests()[before:]]
    assert any("config.json" in path for path in asked)
    assert not any("safetensors" in path for path in asked)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "no model to list: give --repo ORG/NAME, --path DIR, or --model file.py:function"),
        (["--repo", "a/b", "--path", "c"], "--repo and --path name two models: give one of them"),
        (["--model", "networks.py:Mlp", "--shape", "6,x"], "--shape '6,x' cannot be read"),
        (["--model", "networks.py:Mlp", "--shape", "0"], "--shape '0' cannot be read"),
        (["--model", "networks.py:Mlp", "--shape", "6", "--probes", "p.npy"], "--shape and --probes both say"),
        (
            ["--model", "networks.py:Mlp", "--shape", "7"],
            "Mlp cannot take torch.float32 of shape (1, 7): mat1 and mat2",
        ),
        (["--model", "networks.py:Mlp", "--layers", "fc9"], "Mlp has no layer 'fc9'; the nearest are fc"),
    ],
)
def test_what_cannot_be_listed_is_said_in_one_line(networks: Path, arguments: list[Any], line: str) -> None:
    result = replay(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"replay: {line}")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
