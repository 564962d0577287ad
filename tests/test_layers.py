"""Layers by name: what can be written, what it names in each family, and what is said when it names nothing."""

import subprocess
import sys

import pytest
import torch
from small_models import FAMILIES, N_BLOCKS, small_model
from torch import nn

from replay.anatomy import find_anatomy
from replay.layers import LayerSpec, ResolvedLayer, expand_layers, find_sites, n_blocks, resolve_layer
from store.errors import InvalidLayer, UnknownLayer

# family: embed, the list of blocks, final norm, in the base model
ALIASES = {
    "gpt_neox": ("embed_in", "layers", "final_layer_norm"),
    "gpt2": ("wte", "h", "ln_f"),
    "llama": ("embed_tokens", "layers", "norm"),
    "qwen2": ("embed_tokens", "layers", "norm"),
    "bert": ("embeddings", "encoder.layer", "encoder.layer.2.output.LayerNorm"),
    "roberta": ("embeddings", "encoder.layer", "encoder.layer.2.output.LayerNorm"),
    "deberta": ("embeddings", "encoder.layer", "encoder.layer.2.output.LayerNorm"),
    "opt": ("decoder.embed_tokens", "decoder.layers", "decoder.final_layer_norm"),
    "bloom": ("word_embeddings", "h", "ln_f"),
    "t5": ("encoder.embed_tokens", "encoder.block", "encoder.final_layer_norm"),
}


class Residual(nn.Module):
    """A block of a model that transformers does not know."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.experts[0](self.norm(x))
        return x + y


class Homemade(nn.Module):
    """A model that transformers does not know: two lists, the longer holds the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.stem = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.tower = nn.ModuleList(Residual(4) for _ in range(3))
        self.ln_end = nn.LayerNorm(4)
        self.readout = nn.Linear(4, 10)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        for module in [*self.stem, *self.tower]:
            x = module(x)
        logits: torch.Tensor = self.readout(self.ln_end(x))
        return logits


def names(layers: list[ResolvedLayer]) -> list[str]:
    return [str(layer.spec) for layer in layers]


def test_importing_layers_does_not_import_torch() -> None:
    code = "import sys, replay.layers; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("blocks[-1]", "blocks[-1]:output:mean"),
        ("embed:input", "embed:input:mean"),
        ("gpt_neox.layers[-1]:output:last_token", "gpt_neox.layers[-1]:output:last_token"),
        ("encoder.layer.0:hidden_states:cls", "encoder.layer.0:hidden_states:first_token"),
        ("blocks[*]:output:none", "blocks[*]:output:all"),
        ("blocks[2:5].mlp:input:all", "blocks[2:5].mlp:input:all"),
    ],
)
def test_a_spec_reads_what_it_writes(text: str, full: str) -> None:
    spec = LayerSpec.parse(text)
    assert str(spec) == full
    assert LayerSpec.parse(full) == spec


def test_the_given_reduction_is_that_of_specs_that_name_none() -> None:
    assert LayerSpec.parse("embed", reduce="all") == LayerSpec("embed", "output", "all")
    assert LayerSpec.parse("embed:output:mean", reduce="all") == LayerSpec("embed")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "embed:outputs",
            "unknown extraction point 'outputs' in the layer 'embed:outputs:mean': choose output, input, hidden_states",
        ),
        (
            "embed:output:last",
            (
                "unknown reduction 'last' in the layer 'embed:output:last': "
                "choose last_token, flatten, all, first_token, mean, spatial_mean"
            ),
        ),
        ("a:output:mean:x", "cannot read the layer 'a:output:mean:x': write path:point:reduce"),
        ("", "cannot read the layer ''"),
        ("embed::mean", "cannot read the layer 'embed::mean'"),
        ("layers[0]junk", r"cannot read 'layers[0]junk' in the layer path 'layers[0]junk': write names"),
        ("layers[x].mlp", r"cannot read 'layers[x]' in the layer path 'layers[x].mlp'"),
        ("layers[0]..mlp", "cannot read '' in the layer path 'layers[0]..mlp'"),
        ("layers[", r"cannot read 'layers[' in the layer path 'layers['"),
    ],
)
def test_a_spec_that_cannot_be_read_is_refused_with_its_wrong_part(text: str, message: str) -> None:
    with pytest.raises(InvalidLayer) as caught:
        LayerSpec.parse(text)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ALIASES)
def test_the_aliases_name_the_same_parts_in_every_family(family: str) -> None:
    model = small_model(family)
    embed, blocks, norm = ALIASES[family]
    assert resolve_layer(model, "embed") is model.get_submodule(embed)
    assert resolve_layer(model, "final_norm") is model.get_submodule(norm)
    for i in range(N_BLOCKS):
        assert resolve_layer(model, f"blocks[{i}]") is model.get_submodule(f"{blocks}.{i}")
        assert resolve_layer(model, f"blocks[{i - N_BLOCKS}]") is model.get_submodule(f"{blocks}.{i}")
    assert n_blocks(model) == N_BLOCKS


@pytest.mark.parametrize("family", FAMILIES)
def test_the_names_of_a_model_with_a_head_are_those_of_its_base_model(family: str) -> None:
    asked = ["embed", "blocks[*]", "final_norm"]
    plain = expand_layers(small_model(family), asked)
    assert expand_layers(small_model(family, head=True), asked) == plain
    assert names(plain)[:2] == ["embed:output:mean", "blocks[0]:output:mean"]
    assert len(plain) == N_BLOCKS + 2


@pytest.mark.parametrize(
    ("family", "headed", "plain"),
    [
        ("gpt_neox", "gpt_neox.layers[-1].attention", "layers.2.attention"),
        ("gpt2", "transformer.h.0", "h[0]"),
        ("llama", "model.layers[1].mlp", "layers[1].mlp"),
        ("bert", "bert.encoder.layer[0]", "encoder.layer.0"),
        ("opt", "model.decoder.layers[1]", "decoder.layers[1]"),
    ],
)
def test_a_path_of_the_model_with_a_head_and_of_its_base_resolve_on_both(family: str, headed: str, plain: str) -> None:
    base, full = small_model(family), small_model(family, head=True)
    assert resolve_layer(base, headed) is resolve_layer(base, plain)
    assert resolve_layer(full, headed) is resolve_layer(full, plain)
    assert expand_layers(base, [headed]) == expand_layers(full, [plain])


def test_indices_may_be_nested_negative_or_written_with_dots() -> None:
    model = nn.Module()
    model.grid = nn.ModuleList(nn.ModuleList(nn.Linear(2, 2) for _ in range(3)) for _ in range(2))
    last = model.get_submodule("grid.1.2")
    assert resolve_layer(model, "grid[1][2]") is last
    assert resolve_layer(model, "grid[-1][-1]") is last
    assert resolve_layer(model, "grid.1.2") is last
    assert resolve_layer(model, "grid.1[2]") is last


def test_an_unknown_path_names_itself_and_the_nearest() -> None:
    with pytest.raises(UnknownLayer) as caught:
        resolve_layer(small_model("gpt_neox"), "layers[1].atention")
    assert str(caught.value).startswith("GPTNeoXModel has no layer 'layers[1].atention'; the nearest are ")
    assert "layers.1.attention" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_index_beyond_the_blocks_says_how_many_there_are() -> None:
    with pytest.raises(
        UnknownLayer, match=r"no layer 'blocks\[9\]' \('layers' has 3 entries, 0 to 2\); the nearest are"
    ):
        resolve_layer(small_model("gpt_neox"), "blocks[9]")
    with pytest.raises(UnknownLayer):
        resolve_layer(small_model("gpt_neox"), "blocks[-4]")


def test_nothing_near_suggests_the_aliases() -> None:
    with pytest.raises(UnknownLayer, match=r"the nearest are embed, blocks\[0\], final_norm"):
        resolve_layer(small_model("gpt2"), "zzz.qqq")


def test_one_module_is_not_named_by_a_wildcard() -> None:
    with pytest.raises(InvalidLayer, match="one is needed"):
        resolve_layer(small_model("gpt2"), "blocks[*]")


def test_blocks_are_found_by_structure_where_no_family_is_known() -> None:
    model = Homemade()
    assert resolve_layer(model, "blocks[-1]") is model.tower[2]
    assert resolve_layer(model, "embed") is model.table
    assert resolve_layer(model, "final_norm") is model.ln_end
    assert n_blocks(model) == 3
    assert names(expand_layers(model, ["tower[0].experts[1]"])) == ["blocks[0].experts.1:output:mean"]
    assert n_blocks(nn.Linear(2, 2)) == 0


def test_the_first_of_equally_long_lists_holds_the_blocks_and_the_shallowest_before_it() -> None:
    model = nn.Module()
    model.deep = nn.Module()
    model.deep.inner = nn.ModuleList(nn.Linear(1, 1) for _ in range(2))
    model.first = nn.ModuleList(nn.Linear(1, 1) for _ in range(2))
    model.second = nn.ModuleList(nn.Linear(1, 1) for _ in range(2))
    assert find_anatomy(model).aliases["blocks"] == "first"


def test_the_configuration_tells_blocks_from_a_longer_list() -> None:
    model = small_model("bert")
    model.adapters = nn.ModuleList(nn.Linear(1, 1) for _ in range(10))
    assert find_anatomy(model).aliases["blocks"] == "encoder.layer"


def test_without_a_wish_every_block_is_meant() -> None:
    model = small_model("llama")
    everything = [f"blocks[{i}]:output:mean" for i in range(N_BLOCKS)]
    assert names(expand_layers(model)) == names(expand_layers(model, [])) == everything


def test_expansion_is_in_the_order_of_the_model_and_each_layer_once() -> None:
    asked = ["final_norm", "blocks[-1]", "layers[2]", "gpt_neox.layers.2:output:mean", "blocks[*]", "embed"]
    expected = ["embed", "blocks[0]", "blocks[1]", "blocks[2]", "final_norm"]
    assert names(expand_layers(small_model("gpt_neox"), asked)) == [f"{path}:output:mean" for path in expected]


def test_the_final_norm_comes_after_the_blocks_even_if_registered_before() -> None:
    layers = expand_layers(small_model("opt"), ["final_norm", "blocks[*].fc2", "blocks[-1]"])
    assert [layer.module for layer in layers][-2:] == ["decoder.layers.2.fc2", "decoder.final_layer_norm"]


def test_wildcards_and_slices_select_what_python_would() -> None:
    model = small_model("gpt_neox")
    assert names(expand_layers(model, ["blocks[1:].mlp"])) == ["blocks[1].mlp:output:mean", "blocks[2].mlp:output:mean"]
    assert names(expand_layers(model, ["blocks[::2]"])) == ["blocks[0]:output:mean", "blocks[2]:output:mean"]
    assert expand_layers(model, ["layers.*.attention"]) == expand_layers(model, ["blocks[*].attention"])
    assert [layer.module for layer in expand_layers(model, ["blocks[0].*attention*"])] == [
        "layers.0.post_attention_layernorm",
        "layers.0.post_attention_dropout",
        "layers.0.attention",
    ]


def test_a_wildcard_passes_over_modules_that_lack_the_rest_and_over_lists() -> None:
    model = Homemade()
    model.tower[1] = nn.Linear(4, 4)
    assert [layer.module for layer in expand_layers(model, ["blocks[*].norm"])] == ["tower.0.norm", "tower.2.norm"]
    assert [layer.module for layer in expand_layers(model, ["*"])] == ["table", "ln_end", "readout"]


def test_points_and_reductions_are_kept_and_the_reduction_given_fills_the_gaps() -> None:
    asked: list[str | LayerSpec] = ["blocks[0]", "blocks[0]:input", "blocks[0]:output:cls", LayerSpec("blocks[0]")]
    assert set(names(expand_layers(small_model("gpt2"), asked, reduce="last_token"))) == {
        "blocks[0]:output:last_token",
        "blocks[0]:input:last_token",
        "blocks[0]:output:first_token",
        "blocks[0]:output:mean",
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_a_canonical_name_resolves_to_its_module(family: str) -> None:
    model = small_model(family)
    inside = [path for path, module in find_anatomy(model).stack.named_modules() if path]
    top = "encoder." if family == "t5" else ""
    for path in inside:
        if not isinstance(model.get_submodule(top + path), nn.ModuleList):
            (layer,) = expand_layers(model, [top + path])
            assert resolve_layer(model, layer.spec.path) is model.get_submodule(layer.module)


def test_what_is_never_called_is_refused_before_the_run() -> None:
    with pytest.raises(InvalidLayer, match=r"'layers' is a list of 3 modules and never called: write blocks\[\*\]"):
        expand_layers(small_model("gpt_neox"), ["blocks"])
    with pytest.raises(InvalidLayer, match="'lm_head' is outside the base model of GPT2LMHeadModel"):
        expand_layers(small_model("gpt2", head=True), ["lm_head"])
    with pytest.raises(InvalidLayer, match=r"'decoder.block.0' is outside the encoder of T5Model"):
        expand_layers(small_model("t5"), ["decoder.block[0]"])


def test_hidden_states_are_of_the_embedding_and_the_blocks_only() -> None:
    model = small_model("gpt_neox")
    assert len(expand_layers(model, ["embed:hidden_states", "blocks[*]:hidden_states"])) == N_BLOCKS + 1
    with pytest.raises(InvalidLayer, match=r"'blocks\[0\].mlp' has no hidden_states in transformers"):
        expand_layers(model, ["blocks[0].mlp:hidden_states"])


def test_layers_that_share_a_block_have_no_hidden_state_of_their_own() -> None:
    model = small_model("albert")
    with pytest.raises(InvalidLayer, match=r"the layers of AlbertModel share 1 block\(s\)"):
        expand_layers(model, ["blocks[0]:hidden_states"])
    assert names(expand_layers(model, ["blocks[*]"])) == ["blocks[0]:output:mean"]
    with pytest.raises(UnknownLayer):
        resolve_layer(model, "final_norm")


def test_a_site_of_several_modules_is_refused() -> None:
    with pytest.raises(InvalidLayer, match="is a list of 3 modules"):
        find_sites(small_model("gpt2"), [LayerSpec("h")])
