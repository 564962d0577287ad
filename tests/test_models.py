"""Weights from a folder: what loads, what is refused, and that nothing is said on stderr."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import FAMILIES, small_model
from transformers.utils import logging as transformers_logging

from replay.capture import replay_probes
from replay.layers import expand_layers
from replay.models import NeededWeights, layer_model, load_model, needed_weights
from store.errors import (
    CheckpointError,
    DamagedWeights,
    InvalidInput,
    MismatchedWeights,
    MissingWeights,
    ReplayError,
    UnknownSource,
)

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the folder of a family's model with a head, written once by transformers."""
    top = tmp_path_factory.mktemp("checkpoints")

    def folder(family: str) -> Path:
        if not (top / family).exists():
            small_model(family, head=True).save_pretrained(top / family)
        return top / family

    return folder


@pytest.fixture
def checkpoint(saved: Callable[[str], Path], tmp_path: Path) -> Path:
    """Give a GPT-NeoX checkpoint that a test may spoil."""
    return Path(shutil.copytree(saved("gpt_neox"), tmp_path / "step1000"))


def rewrite(folder: Path, change: Callable[[Weights], Weights | None]) -> None:
    weights = load_file(folder / "model.safetensors")
    changed = change(weights)
    save_file(weights if changed is None else changed, folder / "model.safetensors", metadata={"format": "pt"})


def tensors(model: Any) -> Weights:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def same(model: Any, other: Any) -> bool:
    mine, theirs = tensors(model), tensors(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def refusal(folder: Path, kind: type[ReplayError]) -> str:
    with pytest.raises(kind) as caught:
        load_model(folder)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("family", [*FAMILIES, "bart", "clip"])
def test_a_checkpoint_with_a_head_loads_as_its_base_model(family: str, saved: Callable[[str], Path]) -> None:
    model = load_model(saved(family))
    headed = small_model(family, head=True)
    theirs = tensors(headed.base_model)  # of T5, head and all
    assert all(torch.equal(value, theirs[name]) for name, value in tensors(model).items())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    run = headed.get_encoder() if family in ("t5", "bart") else headed.base_model
    ids = torch.tensor([[5, 9, 11]])
    layers = expand_layers(model, ["final_norm:output:all"])
    (found,) = replay_probes(model, ids.tolist(), layers).values()
    with torch.no_grad():
        assert torch.equal(torch.from_numpy(found), run(input_ids=ids).last_hidden_state[0])


def test_a_checkpoint_saved_from_the_base_model_loads_too(tmp_path: Path) -> None:
    base = small_model("gpt_neox")
    base.save_pretrained(tmp_path)
    assert same(load_model(tmp_path), base)


def test_a_pooler_is_neither_needed_nor_minded(saved: Callable[[str], Path], tmp_path: Path) -> None:
    pooled = small_model("bert")
    pooled.save_pretrained(tmp_path)
    assert any(name.startswith("pooler") for name in load_file(tmp_path / "model.safetensors"))
    assert load_model(tmp_path).pooler is None
    shutil.copytree(saved("bert"), tmp_path, dirs_exist_ok=True)
    rewrite(tmp_path, lambda weights: weights | {"bert.pooler.dense.weight": torch.ones(2, 2)})
    assert same(load_model(tmp_path), small_model("bert", head=True).bert)


@pytest.mark.parametrize("form", ["shards", "bin", "old bin", "bin shards"])
def test_every_form_of_weights_gives_the_same_model(form: str, checkpoint: Path) -> None:
    wanted = load_model(checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    names = sorted(weights)
    suffix, save = (".safetensors", save_file) if form == "shards" else (".bin", torch.save)
    single = f"{'model' if form == 'shards' else 'pytorch_model'}{suffix}"
    if "shards" in form:
        halves = {"one" + suffix: names[::2], "two" + suffix: names[1::2]}
        for shard, part in halves.items():
            save({name: weights[name] for name in part}, checkpoint / shard)
        index = {"weight_map": {name: shard for shard, part in halves.items() for name in part}}
        (checkpoint / f"{single}.index.json").write_text(json.dumps(index))
    else:
        torch.save(weights, checkpoint / single, _use_new_zipfile_serialization=form == "bin")
    assert same(load_model(checkpoint), wanted)


def test_the_old_names_of_layer_norms_are_understood(saved: Callable[[str], Path], tmp_path: Path) -> None:
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    shutil.copytree(saved("bert"), tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    for new, gone in old.items():
        weights = {name.replace(new, gone): value for name, value in weights.items()}
    weights["bert.embeddings.position_ids"] = torch.arange(64)[None]
    torch.save(weights, tmp_path / "pytorch_model.bin")
    assert same(load_model(tmp_path), small_model("bert", head=True).bert)


def test_safetensors_are_preferred_to_pickles(checkpoint: Path) -> None:
    (checkpoint / "pytorch_model.bin").write_bytes(b"not looked at")
    load_model(checkpoint)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_converted_to_the_dtype_asked_for(dtype: str, checkpoint: Path) -> None:
    rewrite(checkpoint, lambda weights: {name: value.half() for name, value in weights.items()})
    model = load_model(checkpoint, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


def test_a_dtype_or_device_that_cannot_be_used_is_refused(checkpoint: Path) -> None:
    with pytest.raises(InvalidInput, match="unknown dtype 'int8': choose float32, bfloat16, float16"):
        load_model(checkpoint, dtype="int8")
    with pytest.raises(InvalidInput, match="cannot use the device 'abacus'"):
        load_model(checkpoint, device="abacus")


def test_missing_weights_are_counted_and_listed(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda weights: {name: value for name, value in weights.items() if "layers.1." not in name})
    text = refusal(checkpoint, MismatchedWeights)
    assert text.startswith("GPTNeoXModel: missing weights (12): layers.1.attention.dense.bias, ")
    assert text.endswith(" and 7 more")


def test_weights_of_blocks_that_the_configuration_does_not_have_are_refused(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    text = refusal(checkpoint, MismatchedWeights)
    assert text.startswith("GPTNeoXModel: weights without a place in the model (12): gpt_neox.layers.2.")


def test_such_weights_are_refused_in_a_checkpoint_of_the_base_model_too(tmp_path: Path) -> None:
    small_model("gpt2").save_pretrained(tmp_path)
    rewrite(tmp_path, lambda weights: weights | {"h.7.ln_1.weight": torch.ones(2)})
    assert refusal(tmp_path, MismatchedWeights) == (
        "GPT2Model: weights without a place in the model (1): h.7.ln_1.weight"
    )


def test_heads_and_old_buffers_are_no_fault(checkpoint: Path) -> None:
    extra = {
        "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 4, 4),
        "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(4),
        "classifier.weight": torch.ones(2, 2),
        "v_head.summary.bias": torch.ones(2),
    }
    rewrite(checkpoint, lambda weights: weights | extra)
    assert same(load_model(checkpoint), small_model("gpt_neox", head=True).gpt_neox)


def test_causal_masks_saved_by_old_versions_are_no_fault(tmp_path: Path) -> None:
    base = small_model("gpt2")
    base.save_pretrained(tmp_path)
    masks = {"h.0.attn.bias": torch.ones(1, 1, 4, 4), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    rewrite(tmp_path, lambda weights: weights | masks)
    assert same(load_model(tmp_path), base)


def test_weights_of_another_shape_are_refused(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda weights: weights | {"gpt_neox.embed_in.weight": torch.ones(50, 32)})
    assert refusal(checkpoint, MismatchedWeights) == (
        "GPTNeoXModel: weights of another shape than config.json says (1): embed_in.weight [50, 32] instead of [60, 32]"
    )


@pytest.mark.parametrize("cut", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_truncated_file_is_damaged(name: str, cut: float, checkpoint: Path) -> None:
    if name.endswith(".bin"):
        torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / name)
        (checkpoint / "model.safetensors").unlink()
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content[: int(len(content) * cut)])
    assert refusal(checkpoint, DamagedWeights).startswith(f"{name} ")


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x08\0\0\0\0\0\0\0{]      "])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_of_something_else_is_damaged(name: str, content: bytes, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / name).write_bytes(content)
    assert refusal(checkpoint, DamagedWeights).startswith(f"{name} ")


class Malice:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_unrun(zipped: bool, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    ran = checkpoint / "ran"
    torch.save({"x": Malice(ran)}, checkpoint / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    text = refusal(checkpoint, DamagedWeights)
    assert text == "pytorch_model.bin is no pickle of plain tensors (posix.system): refused, nothing in it was run"
    assert not ran.exists()


@pytest.mark.parametrize("content", [{"step": 7}, [torch.ones(2)], {}, {"state_dict": {"w": torch.ones(2)}}])
def test_a_pickle_that_is_no_table_of_tensors_is_damaged(content: Any, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    torch.save(content, checkpoint / "pytorch_model.bin")
    assert refusal(checkpoint, DamagedWeights) == "pytorch_model.bin is no table of tensors by name"


def test_no_weights_are_missing_weights(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    assert refusal(checkpoint, MissingWeights).startswith("step1000 holds no weights: looked for model.safetensors, ")


def test_a_missing_shard_is_named(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "a.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refusal(checkpoint, MissingWeights) == "1 of 2 weight files are not there: b.safetensors"


@pytest.mark.parametrize(
    "index", ["{", "[]", '{"weight_map": {}}', '{"weight_map": {"x": "../a"}}', '{"weight_map": {"x": 1}}']
)
def test_an_index_that_is_none_is_damaged(index: str, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json" in refusal(checkpoint, DamagedWeights)


@pytest.mark.parametrize(
    "config",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"model_type": "no_such_thing"}',
        '{"auto_map": {"AutoModel": "evil.Model", "AutoConfig": "evil.C"}}',
    ],
)
def test_a_configuration_that_cannot_be_read_is_a_checkpoint_error(config: str, checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text(config)
    (checkpoint / "evil.py").write_text("raise SystemExit('ran')")
    refusal(checkpoint, CheckpointError)
    with pytest.raises(CheckpointError):
        layer_model(checkpoint)


def test_a_folder_without_configuration_or_no_folder_at_all_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, CheckpointError).endswith(
        "has no config.json: it is no checkpoint that transformers could load"
    )
    assert refusal(tmp_path / "absent", UnknownSource).startswith("there is no folder ")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_skeleton_has_the_layers_of_the_model_and_no_weights(family: str, saved: Callable[[str], Path]) -> None:
    skeleton = layer_model(saved(family))
    asked = ["embed", "blocks[*]", "blocks[-1].*" if family != "t5" else "blocks[-1].layer[*]", "final_norm"]
    assert expand_layers(skeleton, asked) == expand_layers(load_model(saved(family)), asked)
    assert {parameter.device.type for parameter in skeleton.parameters()} == {"meta"}


PROBES = [[5, 9, 11], [7], [3, 1, 4, 1, 5]]
PARTS = [
    *((family, asked) for family in (*FAMILIES, "bart", "deberta", "clip") for asked in
      ("embed", "embed:hidden_states", "blocks[0]", "blocks[1]:hidden_states", "blocks[-1]", "final_norm")),
    ("albert", "embed"), ("albert", "blocks[0]"),
    ("gpt_neox", "layers.1.attention.dense:input:all"), ("gpt_neox", "blocks[1]:input"),
    ("llama", "layers[1].mlp.act_fn"), ("bert", "encoder.layer.1.attention.self"), ("bert", "encoder"),
    ("gpt2", "wpe"), ("gpt2", "drop"), ("t5", "encoder.block.1.layer.0:input"), ("bart", "encoder.layers.0.fc1"),
    ("opt", "blocks[-1]:hidden_states"), ("clip", "blocks[-1]:hidden_states"), ("t5", "blocks[-1]:hidden_states"),
]  # fmt: skip


def needs(folder: Path, *asked: str) -> NeededWeights:
    skeleton = layer_model(folder)
    return needed_weights(skeleton, expand_layers(skeleton, asked))


@pytest.mark.parametrize(("family", "asked"), PARTS)
def test_weights_that_no_layer_needs_may_be_absent(
    family: str, asked: str, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved(family), tmp_path / "part"))
    needed = needs(folder, asked)
    rewrite(folder, lambda weights: {name: value for name, value in weights.items() if needed(name)})
    layers = expand_layers(layer_model(folder), [asked])
    found = replay_probes(load_model(folder, layers=layers, partial=True), PROBES, layers)
    whole = replay_probes(load_model(saved(family)), PROBES, layers)
    assert found.keys() == whole.keys()
    assert all(np.array_equal(found[name], whole[name]) for name in whole)
    assert all(np.isfinite(values).all() for values in whole.values())


def test_only_what_lies_behind_the_deepest_layer_is_left_out(saved: Callable[[str], Path]) -> None:
    def left_out(family: str, *asked: str) -> set[str]:
        return set(needs(saved(family), *asked).beyond)

    assert left_out("gpt_neox", "blocks[0]", "blocks[1]") == {"layers.2", "final_layer_norm"}
    assert left_out("gpt_neox", "blocks[2]", "embed") == {"final_layer_norm"}
    assert left_out("gpt_neox", "blocks[2]:hidden_states") == left_out("gpt_neox", "final_norm") == set()
    assert left_out("clip", "blocks[2]:hidden_states") == {"final_layer_norm"}
    assert left_out("opt", "embed") == {*(f"decoder.layers.{i}" for i in range(3)), "decoder.final_layer_norm"}
    assert left_out("bert", "encoder") == left_out("gpt2", "wpe") == set()
    assert left_out("t5", "blocks[1]") == {"shared", "decoder", "encoder.block.2", "encoder.final_layer_norm"}
    assert left_out("bart", "final_norm") == {"shared", "decoder"}
    assert left_out("albert", "embed") == set()


def test_heads_and_old_buffers_are_not_needed_and_what_is_unknown_is(saved: Callable[[str], Path]) -> None:
    needed = needs(saved("gpt_neox"), "blocks[1]")
    for name in ("embed_in.weight", "layers.1.mlp.dense_h_to_4h.bias", "layers.1.strange", "unknown.weight"):
        assert needed(name)
        assert needed(f"gpt_neox.{name}")
    for name in ("layers.2.mlp.dense_h_to_4h.bias", "layers.2.strange", "final_layer_norm.bias", "pooler.dense.bias"):
        assert not needed(name)
        assert not needed(f"gpt_neox.{name}")
    for name in ("attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"):
        assert not needed(f"gpt_neox.layers.0.{name}")
    assert needed("gpt_neox.layers.20.attention.dense.weight")  # which config.json does not know
    heads = {"gpt_neox": "embed_out.weight", "bert": "cls.predictions.bias", "albert": "predictions.bias"}
    for family, head in heads.items():
        assert not needs(saved(family), "blocks[0]")(head)


def test_a_weight_that_is_left_out_under_one_name_and_needed_under_another_is_needed(
    saved: Callable[[str], Path],
) -> None:
    needed = needs(saved("t5"), "embed")
    assert needed("shared.weight")
    assert not needed("decoder.block.0.layer.0.SelfAttention.q.weight")
    assert "shared.weight" in load_file(saved("t5") / "model.safetensors")


def test_what_is_left_out_takes_no_memory_and_what_is_not_stays_in_the_file(checkpoint: Path) -> None:
    needed = needs(checkpoint, "blocks[0]")
    model = load_model(checkpoint, layers=expand_layers(layer_model(checkpoint), ["blocks[0]"]))
    maps = Path("/proc/self/maps").read_text().splitlines()
    mapped = [line.split()[0].split("-") for line in maps if line.endswith(str(checkpoint / "model.safetensors"))]
    for name, parameter in model.named_parameters():
        if name in needed.left_out:
            assert parameter.untyped_storage().nbytes() == 4
            assert parameter.isnan().all()
        else:
            assert any(int(start, 16) <= parameter.data_ptr() < int(stop, 16) for start, stop in mapped)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_a_module_that_was_left_out_refuses_to_run(checkpoint: Path) -> None:
    layers = expand_layers(layer_model(checkpoint), ["blocks[0]", "blocks[1]", "final_norm"])
    model = load_model(checkpoint, layers=layers[:1])
    replay_probes(model, PROBES, layers[:1])
    for layer in layers[1:]:
        with pytest.raises(InvalidInput, match="a GPTNeoXLayer of GPTNeoXModel was left out when the model was loaded"):
            replay_probes(model, PROBES, [layer])


def test_a_weight_that_a_layer_needs_is_missed_as_ever(checkpoint: Path) -> None:
    layers = expand_layers(layer_model(checkpoint), ["blocks[1]"])
    gone = ("layers.1.mlp.dense_h_to_4h.bias", "layers.2.mlp.dense_h_to_4h.bias")
    rewrite(checkpoint, lambda weights: {name: value for name, value in weights.items() if not name.endswith(gone)})
    with pytest.raises(MismatchedWeights) as caught:
        load_model(checkpoint, layers=layers, partial=True)
    assert str(caught.value) == "GPTNeoXModel: missing weights (1): layers.1.mlp.dense_h_to_4h.bias"
    rewrite(checkpoint, lambda _: {"embed_out.weight": torch.ones(1)})
    with pytest.raises(MismatchedWeights, match=r"missing weights \(25\)"):
        load_model(checkpoint, layers=layers, partial=True)


@pytest.mark.parametrize("layers", [["blocks[0]"], ["embed"], None])
def test_a_whole_checkpoint_has_to_hold_the_blocks_that_no_layer_needs_too(
    layers: list[str] | None, checkpoint: Path
) -> None:
    asked = None if layers is None else expand_layers(layer_model(checkpoint), layers)
    rewrite(checkpoint, lambda weights: {name: value for name, value in weights.items() if ".layers.2." not in name})
    with pytest.raises(
        MismatchedWeights, match=r"^GPTNeoXModel: missing weights \(12\): layers.2.attention.dense.bias,"
    ):
        load_model(checkpoint, layers=asked)
    if asked is not None:
        load_model(checkpoint, layers=asked, partial=True)


@pytest.mark.parametrize("family", ["bert", "t5", "bart", "albert"])
def test_a_whole_checkpoint_under_old_or_tied_names_lacks_nothing(
    family: str, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved(family), tmp_path / "old"))
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def renamed(name: str) -> str:
        return next((name.removesuffix(new) + was for new, was in old.items() if name.endswith(new)), name)

    rewrite(folder, lambda weights: {renamed(name): value for name, value in weights.items()})
    layers = expand_layers(layer_model(folder), ["blocks[0]"])
    found = replay_probes(load_model(folder, layers=layers), PROBES, layers)
    whole = replay_probes(load_model(saved(family)), PROBES, layers)
    assert all(np.array_equal(found[name], whole[name]) for name in whole)


def test_blocks_that_the_configuration_does_not_have_are_refused_for_some_layers_too(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(MismatchedWeights, match=r"weights without a place in the model \(12\): gpt_neox.layers.2"):
        load_model(checkpoint, layers=expand_layers(layer_model(checkpoint), ["blocks[0]"]))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_only_the_shards_that_hold_something_needed_must_be_there(suffix: str, checkpoint: Path) -> None:
    layers = expand_layers(layer_model(checkpoint), ["blocks[1]"])
    whole = replay_probes(load_model(checkpoint), PROBES, layers)
    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    shard_of = {name: f"late.{suffix}" if ".layers.2." in name else f"early.{suffix}" for name in weights}
    early = {name: weights[name] for name, shard in shard_of.items() if shard.startswith("early")}
    (save_file if suffix == "safetensors" else torch.save)(early, checkpoint / f"early.{suffix}")
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    (checkpoint / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": shard_of}))
    found = replay_probes(load_model(checkpoint, layers=layers, partial=True), PROBES, layers)
    assert all(np.array_equal(found[name], whole[name]) for name in whole)
    for asked in (None, layers):
        with pytest.raises(MissingWeights, match=f"1 of 2 weight files are not there: late.{suffix}"):
            load_model(checkpoint, layers=asked)
    (checkpoint / f"early.{suffix}").unlink()
    with pytest.raises(MissingWeights, match=f"1 of 1 weight files are not there: early.{suffix}"):
        load_model(checkpoint, layers=layers, partial=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_some_layers_are_converted_as_all_are(family: str, dtype: str, saved: Callable[[str], Path]) -> None:
    layers = expand_layers(layer_model(saved(family)), ["blocks[1]"])
    model = load_model(saved(family), dtype=dtype, layers=layers)
    found = replay_probes(model, PROBES, layers)
    whole = replay_probes(load_model(saved(family), dtype=dtype), PROBES, layers)
    assert all(np.array_equal(found[name], whole[name]) for name in whole)
    needed = needs(saved(family), "blocks[1]")
    left_out = [value for name, value in model.named_parameters() if name in needed.left_out]
    assert left_out
    assert all(value.untyped_storage().nbytes() <= 4 for value in left_out)


def test_the_settings_of_transformers_are_left_as_they_were(checkpoint: Path) -> None:
    transformers_logging.set_verbosity(logging.INFO)
    try:
        load_model(checkpoint)
        assert transformers_logging.get_verbosity() == logging.INFO
        rewrite(checkpoint, lambda weights: {"nothing": torch.ones(1)})
        refusal(checkpoint, MismatchedWeights)
        assert transformers_logging.get_verbosity() == logging.INFO
    finally:
        transformers_logging.set_verbosity_warning()


def test_loading_says_nothing_and_asks_no_network(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda weights: {name: value for name, value in weights.items() if "layers.1." not in name})
    code = f"""
import pathlib, socket, sys, warnings
def refuse(*_):
    print("network")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from replay.models import load_model
from store.errors import MismatchedWeights
try:
    load_model(pathlib.Path({str(checkpoint)!r}))
except MismatchedWeights:
    pass
"""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    command = [sys.executable, "-W", "default", "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=plain)
    assert (done.stdout, done.stderr) == ("", "")
