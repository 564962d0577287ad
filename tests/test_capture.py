"""Activations against plain transformers, one unpadded text at a time, and the traps that older systems fell into."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from small_models import CORE, FAMILIES, N_BLOCKS, N_TOKENS, WIDTH, small_model
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from replay.batches import pad_batch, plan_batches
from replay.capture import ActivationExtractor, replay_probes
from replay.layers import LayerSpec, expand_layers, resolve_layer
from store.errors import InvalidInput, InvalidLayer, InvalidProbes, UnknownLayer

_RANDOM = np.random.default_rng(0)
TEXTS = [_RANDOM.integers(3, N_TOKENS, size=n).tolist() for n in (5, 11, 1, 7, 7, 16, 2, 9)]
REDUCTIONS = ("mean", "last_token", "first_token", "all")


def one_by_one(model: Any, texts: list[list[int]], path: str, reduce: str) -> np.ndarray[Any, Any]:
    """Activations of a module by a hand-written hook and no padding, reduced by numpy."""
    kept: list[Any] = []
    hook = resolve_layer(model, path).register_forward_hook(lambda *seen: kept.append(seen[2]))
    called = model.get_encoder() if model.config.is_encoder_decoder else model
    rows = []
    with torch.no_grad():
        for text in texts:
            kept.clear()
            called(input_ids=torch.tensor([text]))
            values = kept[0] if isinstance(kept[0], torch.Tensor) else kept[0][0]
            rows.append(_reduced(values[0].float().numpy(), reduce))
    hook.remove()
    return np.concatenate(rows)


def _reduced(values: np.ndarray[Any, Any], reduce: str) -> np.ndarray[Any, Any]:
    rows: dict[str, np.ndarray[Any, Any]] = {
        "mean": values.mean(axis=0)[None],
        "last_token": values[-1:],
        "first_token": values[:1],
        "all": values,
    }
    return rows[reduce]


def relative_error(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def replayed(model: Any, *specs: str, texts: list[list[int]] = TEXTS, **options: Any) -> dict[str, Any]:
    return replay_probes(model, texts, expand_layers(model, specs), **options)


def ids_and_mask(side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    batch = pad_batch(TEXTS, pad_token_id=0, padding_side=side)
    return batch.input_ids, batch.attention_mask


def n_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@contextmanager
def counting(model: nn.Module, path: str) -> Iterator[list[int]]:
    calls: list[int] = []
    hook = resolve_layer(model, path).register_forward_pre_hook(lambda *_: calls.append(1))
    yield calls
    hook.remove()


# What is stored


@pytest.mark.parametrize("batch_tokens", [1, 24, 512])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_equals_each_text_alone(family: str, side: str, batch_tokens: int) -> None:
    model = small_model(family)
    specs = [f"{path}:output:{reduce}" for path in ("blocks[1]", "final_norm") for reduce in REDUCTIONS]
    found = replayed(model, *specs, batch_tokens=batch_tokens, padding_side=side)
    assert list(found) == [str(layer.spec) for layer in expand_layers(model, specs)]
    for spec in specs:
        path, _, reduce = spec.split(":")
        assert found[spec].dtype == np.float32
        assert relative_error(found[spec], one_by_one(model, TEXTS, path, reduce)) <= 1e-5


def test_pooling_over_pads_would_have_been_noticed() -> None:
    model = small_model("gpt_neox")
    ids, mask = ids_and_mask()
    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[1]
    found = replayed(model, "blocks[0]:output:mean", "blocks[0]:output:last_token")
    assert relative_error(states.mean(dim=1).numpy(), found["blocks[0]:output:mean"]) > 0.1
    assert relative_error(states[:, -1].numpy(), found["blocks[0]:output:last_token"]) > 0.1


@pytest.mark.parametrize("family", [*FAMILIES, "bart", "clip"])
def test_hidden_states_are_those_of_transformers_bit_by_bit(family: str) -> None:
    model = small_model(family)
    called = model.get_encoder() if family in ("t5", "bart") else model
    ids, mask = ids_and_mask()
    with torch.no_grad():
        states = called(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    paths = ["embed", *(f"blocks[{i}]" for i in range(N_BLOCKS))]
    extractor = ActivationExtractor([f"{path}:hidden_states:all" for path in paths])
    with torch.no_grad(), extractor.capture(model, root=called):
        called(input_ids=ids, attention_mask=mask)
    found = extractor.get_activations()
    for path, state in zip(paths, states, strict=True):
        assert torch.equal(found[LayerSpec(path, "hidden_states", "all")], state[mask.bool()])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_block_is_not_the_last_hidden_state_but_the_final_norm_is(family: str) -> None:
    found = replayed(small_model(family), "blocks[-1]", "blocks[-1]:hidden_states", "final_norm")
    last = found["blocks[2]:hidden_states:mean"]
    assert np.array_equal(found["final_norm:output:mean"], last)
    normalises_inside = family in ("bert", "roberta")
    assert np.array_equal(found["blocks[2]:output:mean"], last) == normalises_inside


@pytest.mark.parametrize("family", CORE)
def test_input_of_a_block_is_the_output_of_the_one_before(family: str) -> None:
    found = replayed(small_model(family), "blocks[1]:input:all", "blocks[0]:output:all")
    assert np.array_equal(found["blocks[1]:input:all"], found["blocks[0]:output:all"])


def test_input_given_by_keyword_is_found() -> None:
    found = replayed(small_model("llama"), "blocks[0].self_attn:input:all", "blocks[0].input_layernorm:output:all")
    assert np.array_equal(
        found["blocks[0].self_attn:input:all"], found["blocks[0].input_layernorm:output:all"]
    )  # LlamaDecoderLayer calls self_attn(hidden_states=...)


def test_hidden_states_are_the_input_whatever_keyword_comes_first() -> None:
    x = torch.randn(2, 3, 4)

    class Attention(nn.Module):
        def forward(self, *, attention_bias: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
            return hidden_states + attention_bias

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Attention()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.attention(attention_bias=torch.ones(2, 3, 4), hidden_states=x)
            return y

    (row,) = ActivationExtractor(["attention:input:all"]).extract_once(Model(), x).values()
    assert torch.equal(row, x.flatten(0, 1))


@pytest.mark.parametrize("family", CORE)
def test_each_extraction_point_does_what_it_says(family: str) -> None:
    found = replayed(small_model(family), "blocks[0]:input", "blocks[0]:output", "embed:hidden_states")
    assert np.array_equal(found["blocks[0]:input:mean"], found["embed:hidden_states:mean"])
    assert relative_error(found["blocks[0]:input:mean"], found["blocks[0]:output:mean"]) > 0.1


@pytest.mark.parametrize("family", CORE)
def test_any_number_of_threads_gives_the_same_bits_and_leaves_the_model_as_it_was(family: str) -> None:
    model = small_model(family).train()
    layers = expand_layers(model, ["blocks[*]", "embed", "final_norm"], reduce="mean")
    token_ids = [[1 + (7 * i + j) % 50 for j in range(1 + i % 6)] for i in range(23)]
    n_threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(replay_probes(model, token_ids, layers, batch_tokens=12))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(n_threads)
    for result in results[1:]:
        assert list(result) == list(results[0])
        for name, values in result.items():
            np.testing.assert_array_equal(values, results[0][name])
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_error_on_a_thread_ends_the_replay() -> None:
    model = small_model("gpt2")
    layers = expand_layers(model, ["blocks[0]"], reduce="mean")
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with pytest.raises(InvalidProbes, match="GPT2Model has no positions for a probe of 5000 tokens"):
            replay_probes(model, [[1], [2], [1] * 5000], layers, batch_tokens=4)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(n_threads)


def test_two_calls_give_the_same_bits() -> None:
    model = small_model("gpt_neox")
    first, second = (replayed(model, "blocks[*]", "final_norm:output:all", batch_tokens=24) for _ in range(2))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_rows_are_in_the_order_of_the_probes() -> None:
    model = small_model("gpt2")
    order = [3, 0, 7, 5, 1, 2, 6, 4]
    straight = replayed(model, "blocks[1]", batch_tokens=24)["blocks[1]:output:mean"]
    mixed = replayed(model, "blocks[1]", texts=[TEXTS[i] for i in order], batch_tokens=24)["blocks[1]:output:mean"]
    assert relative_error(mixed, straight[order]) <= 1e-5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision_is_upcast_before_it_is_reduced(dtype: torch.dtype, tolerance: float) -> None:
    model = small_model("gpt_neox").to(dtype)
    found = replayed(model, "blocks[1]", "blocks[1]:output:all", batch_tokens=1)
    tokens = found["blocks[1]:output:all"]
    ends = np.cumsum([len(text) for text in TEXTS])
    means = np.stack([part.mean(axis=0) for part in np.split(tokens, ends[:-1])])
    assert found["blocks[1]:output:mean"].dtype == np.float32
    assert relative_error(found["blocks[1]:output:mean"], means) <= 1e-6
    full = replayed(small_model("gpt_neox"), "blocks[1]")["blocks[1]:output:mean"]
    assert relative_error(means, full) <= tolerance


def test_a_model_with_a_head_gives_what_its_base_gives_and_never_runs_the_head() -> None:
    model = small_model("gpt_neox", head=True)
    layers = expand_layers(model, ["blocks[*]", "final_norm"])
    with counting(model, "lm_head") as calls:
        found = replay_probes(model, TEXTS, layers)
    assert calls == []
    wanted = replay_probes(model.gpt_neox, TEXTS, layers)
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_of_an_encoder_decoder_only_the_encoder_runs() -> None:
    model = small_model("t5")
    with counting(model, "decoder") as calls:
        replayed(model, "blocks[*]")
    assert calls == []


def test_no_key_value_cache_is_built() -> None:
    model = small_model("llama")
    caches: list[Any] = []
    hook = model.layers[0].register_forward_pre_hook(
        lambda _module, _args, kwargs: caches.append(kwargs.get("past_key_values")), with_kwargs=True
    )
    replayed(model, "blocks[0]")
    hook.remove()
    assert caches == [None]


def test_the_forward_stops_after_the_deepest_layer() -> None:
    model = small_model("gpt2")
    with counting(model, "blocks[1]") as deepest, counting(model, "blocks[2]") as beyond:
        replayed(model, "embed", "blocks[1]", batch_tokens=24)
    assert len(deepest) == len(plan_batches([len(text) for text in TEXTS], 24))
    assert beyond == []


def test_replay_leaves_modes_and_hooks_as_they_were_even_after_an_error() -> None:
    model = small_model("gpt_neox").train()
    model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    replayed(model, "blocks[*]")
    with pytest.raises(InvalidLayer):
        replay_probes(model, TEXTS, expand_layers(model, ["rotary_emb:output:all", "embed:input"]))
    assert [module.training for module in model.modules()] == modes
    assert n_hooks(model) == 0
    assert "forward" not in vars(model)


def test_replay_is_in_eval_mode() -> None:
    model = small_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5)
    still = replayed(model, "blocks[*]")
    moving = replayed(model.train(), "blocks[*]")
    assert all(np.array_equal(still[name], moving[name]) for name in still)


def test_progress_counts_every_probe() -> None:
    done: list[int] = []
    replayed(small_model("gpt2"), "blocks[0]", batch_tokens=24, progress=done.append)
    assert sum(done) == len(TEXTS)
    assert len(done) > 1


# What is refused


def test_probes_that_the_model_cannot_take_are_refused() -> None:
    model = small_model("gpt2", n_positions=8)
    with pytest.raises(InvalidProbes, match="probe 1 holds token 60, but GPT2Model knows 0 to 59"):
        replayed(model, "blocks[0]", texts=[[3], [4, 60]])
    with pytest.raises(InvalidProbes, match="GPT2Model has no positions for a probe of 9 tokens"):
        replayed(model, "blocks[0]", texts=[[3] * 9])
    with pytest.raises(InvalidProbes, match="no probes to replay"):
        replayed(model, "blocks[0]", texts=[])
    with pytest.raises(InvalidInput, match="probe 1 has no tokens"):
        replayed(model, "blocks[0]", texts=[[3], []])
    with pytest.raises(InvalidInput, match="pad_token_id 60 is outside"):
        replayed(model, "blocks[0]", texts=[[3]], pad_token_id=60)
    with pytest.raises(InvalidInput, match="unknown padding side 'top'"):
        replayed(model, "blocks[0]", texts=[[3]], padding_side="top")
    with pytest.raises(InvalidInput, match="the model is on cpu, not on meta"):
        replayed(model, "blocks[0]", texts=[[3]], device="meta")


def test_left_padding_is_refused_where_it_would_shift_positions() -> None:
    with pytest.raises(InvalidInput, match="BartEncoder takes no position_ids"):
        replayed(small_model("bart"), "blocks[0]", padding_side="left")
    replayed(small_model("bart"), "blocks[0]", padding_side="left", batch_tokens=1)


def test_a_layer_without_a_row_for_each_probe_or_token_is_refused() -> None:
    model = small_model("bert")
    with pytest.raises(InvalidLayer, match="pooler:output:all gives 8 rows for 58 tokens"):
        replayed(model, "pooler:output:all")
    assert replayed(model, "pooler")["pooler:output:mean"].shape == (len(TEXTS), WIDTH)


def test_token_ids_are_no_activations() -> None:
    with pytest.raises(InvalidLayer, match=r"embed:input:mean gives torch.int64 of shape \(8, 16\)"):
        replayed(small_model("gpt2"), "embed:input")


def test_batches_depend_on_lengths_alone_and_hold_the_budget() -> None:
    lengths = [len(text) for text in TEXTS]
    batches = plan_batches(lengths, 24)
    assert sorted(i for batch in batches for i in batch) == list(range(len(TEXTS)))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 24 for batch in batches)
    assert [lengths[i] for batch in batches for i in batch] == sorted(lengths)
    assert plan_batches([30, 4], 24) == [[1], [0]]
    assert plan_batches([4, 4, 4], 8) == [[0, 1], [2]]
    with pytest.raises(InvalidInput, match="batch_tokens must be at least 1"):
        plan_batches([1], 0)


# The extractor


def test_the_mask_of_the_call_is_found_wherever_it_stands() -> None:
    model = small_model("gpt_neox")
    extractor = ActivationExtractor(["blocks[0]"])
    wanted = torch.from_numpy(one_by_one(model, TEXTS, "blocks[0]", "mean"))
    for side in ("right", "left"):
        ids, mask = ids_and_mask(side)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        with torch.no_grad(), extractor.capture(model):
            model(ids, mask, position_ids=positions)
            model(input_ids=ids, attention_mask=mask.bool(), position_ids=positions)
        rows = extractor.get_activations()[LayerSpec("blocks[0]")]
        assert torch.allclose(rows, torch.cat([wanted, wanted]), rtol=1e-5, atol=1e-5)


def test_without_a_mask_every_token_counts_and_a_given_mask_is_for_pooling_alone() -> None:
    model = small_model("gpt2")
    ids, mask = ids_and_mask()
    extractor = ActivationExtractor(["blocks[0]", "blocks[0]:output:all"])
    with torch.no_grad():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states[1]
    rows = extractor.extract_once(model, input_ids=ids)
    assert torch.allclose(rows[LayerSpec("blocks[0]")], states.mean(dim=1))
    assert torch.equal(rows[LayerSpec("blocks[0]", "output", "all")], states.reshape(-1, WIDTH))
    with torch.no_grad(), extractor.capture(model, attention_mask=mask):
        model(input_ids=ids)
    assert torch.equal(extractor.get_activations()[LayerSpec("blocks[0]", "output", "all")], states[mask.bool()])


def test_a_row_without_a_token_is_refused() -> None:
    ids, mask = ids_and_mask()
    mask[2] = 0
    with pytest.raises(InvalidInput, match="leaves no token in row 2 of the batch"):
        ActivationExtractor(["blocks[0]"]).extract_once(small_model("gpt2"), input_ids=ids, attention_mask=mask)


def test_what_stands_in_the_pads_never_reaches_a_row() -> None:
    model = nn.Sequential(nn.Identity())
    values = torch.tensor([[[1.0], [3.0], [torch.nan]], [[torch.inf], [2.0], [4.0]]])
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    specs = [LayerSpec("0", "output", reduce) for reduce in REDUCTIONS]
    rows = ActivationExtractor(specs).extract_once(model, values, attention_mask=mask)
    assert [rows[spec].flatten().tolist() for spec in specs] == [[2, 3], [3, 4], [1, 2], [1, 3, 2, 4]]


def test_several_specs_on_one_module_stay_apart() -> None:
    model = small_model("gpt_neox")
    specs = [LayerSpec("layers[1]", point, reduce) for point in ("input", "output") for reduce in ("mean", "cls")]
    ids, mask = ids_and_mask()
    rows = ActivationExtractor(specs).extract_once(model, input_ids=ids, attention_mask=mask)
    assert list(rows) == specs
    assert all(tuple(row.shape) == (len(TEXTS), WIDTH) for row in rows.values())
    assert len({tuple(row.flatten().tolist()) for row in rows.values()}) == len(specs)


class Overwriting(nn.Module):
    """Returns a tuple whose first tensor the next module then changes in place."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, str]:
        return x * 1.0, "more"


class Chain(nn.Module):
    """Writes into what its first part returned."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Overwriting()
        self.second = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> BaseModelOutput:
        y = self.first(x)[0]
        self.second(y)
        y += 100
        return BaseModelOutput(last_hidden_state=y, hidden_states=(x, y))


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 4)])
def test_later_changes_in_place_do_not_reach_what_was_captured(reduce: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    spec = LayerSpec("first", "output", reduce)
    after = LayerSpec("second", "input", reduce)
    rows = ActivationExtractor([spec, after]).extract_once(Chain(), x)
    plain = ActivationExtractor([LayerSpec("0", "output", reduce)]).extract_once(nn.Sequential(nn.Identity()), x)
    wanted = next(iter(plain.values()))
    assert torch.equal(rows[spec], wanted)
    assert torch.equal(rows[after], wanted)


def test_model_outputs_give_their_last_hidden_state_and_their_hidden_states() -> None:
    model = nn.Sequential(Chain())
    patched = model.forward  # as libraries do that move models between devices
    model.forward = patched  # type: ignore[method-assign]
    x = torch.randn(2, 3, 4)
    output, states = LayerSpec("0"), LayerSpec("0", "hidden_states")
    rows = ActivationExtractor([output, states], stop=True).extract_once(model, x)
    wanted = (x.relu() + 100).mean(dim=1)
    assert torch.equal(rows[output], wanted)
    assert torch.equal(rows[states], wanted)
    assert vars(model)["forward"] is patched


def test_a_module_without_hidden_states_says_so() -> None:
    with pytest.raises(
        InvalidLayer, match="first:hidden_states:mean: Overwriting has no hidden_states in what it returns"
    ):
        ActivationExtractor(["first:hidden_states"]).extract_once(Chain(), torch.randn(2, 3, 4))


def test_outputs_without_tokens_are_taken_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    x = torch.randn(5, 4)
    for reduce in REDUCTIONS:
        (row,) = ActivationExtractor([LayerSpec("0", "output", reduce)]).extract_once(model, x).values()
        assert torch.equal(row, model(x))


def test_tokens_flattened_by_a_module_are_told_apart_by_the_mask() -> None:
    model = nn.Sequential(nn.Flatten(0, 1), nn.Identity())
    x = torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    (row,) = ActivationExtractor(["0"]).extract_once(model, x, attention_mask=mask).values()
    assert torch.allclose(row, torch.stack([x[0, :2].mean(dim=0), x[1].mean(dim=0)]))


def test_activations_that_do_not_fit_the_mask_are_refused() -> None:
    mask = torch.ones(2, 5)
    with pytest.raises(InvalidLayer, match=r"0:output:mean gives activations of shape \(2, 3, 4\)"):
        ActivationExtractor(["0"]).extract_once(nn.Sequential(nn.Identity()), torch.randn(2, 3, 4), attention_mask=mask)
    with pytest.raises(InvalidInput, match=r"shape \(text, token\), not \(2, 1, 5, 5\)"):
        ActivationExtractor(["0"]).extract_once(
            nn.Sequential(nn.Identity()), torch.randn(2, 5, 4), attention_mask=torch.ones(2, 1, 5, 5)
        )


def test_batches_are_put_together_and_token_rows_stay_ragged() -> None:
    model = small_model("gpt_neox")
    extractor = ActivationExtractor(["blocks[0]:output:all", "blocks[0]"])
    with torch.no_grad(), extractor.capture(model):
        for text in TEXTS:
            model(input_ids=torch.tensor([text]))
    kept = extractor.get_activations(clear=False)
    again = extractor.get_activations()
    assert extractor.get_activations() == {}
    for spec in extractor.specs:
        assert torch.equal(kept[spec], again[spec])
        assert relative_error(kept[spec].numpy(), one_by_one(model, TEXTS, "blocks[0]", spec.reduce)) <= 1e-6


def test_features_that_change_between_batches_are_refused() -> None:
    model = nn.Sequential(nn.Identity())
    extractor = ActivationExtractor(["0"])
    with extractor.capture(model):
        model(torch.randn(2, 3))
        model(torch.randn(2, 4))
    with pytest.raises(InvalidLayer, match=r"0:output:mean gave \(3,\) features in one batch and \(4,\) in another"):
        extractor.get_activations()


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_gradients_flow_if_asked(reduce: str) -> None:
    model = small_model("gpt_neox")
    ids, mask = ids_and_mask()
    spec = LayerSpec("blocks[1]", "output", reduce)
    row = ActivationExtractor([spec], detach=False, stop=True).extract_once(model, input_ids=ids, attention_mask=mask)
    row[spec].square().sum().backward()  # type: ignore[no-untyped-call]
    assert model.embed_in.weight.grad.abs().sum() > 0
    assert model.layers[2].mlp.dense_h_to_4h.weight.grad is None
    cut = ActivationExtractor([spec]).extract_once(model, input_ids=ids, attention_mask=mask)
    assert not cut[spec].requires_grad


def test_capture_during_training_is_detached_and_leaves_the_mode_alone() -> None:
    model = small_model("gpt2").train()
    extractor = ActivationExtractor(["blocks[0]"])
    with extractor.capture(model):
        loss = model(input_ids=torch.tensor(TEXTS[:1])).last_hidden_state.sum()
    loss.backward()
    assert model.training
    assert not extractor.get_activations()[LayerSpec("blocks[0]")].requires_grad


def test_extract_once_gives_each_module_its_own_mode_back() -> None:
    model = small_model("gpt2").train()
    model.h[1].eval()
    modes = [module.training for module in model.modules()]
    ActivationExtractor(["blocks[0]"], stop=True).extract_once(model, input_ids=torch.tensor(TEXTS[:1]))
    assert [module.training for module in model.modules()] == modes


def test_extract_once_starts_afresh() -> None:
    model = small_model("gpt2")
    extractor = ActivationExtractor(["blocks[0]"])
    with extractor.capture(model):
        model(input_ids=torch.tensor(TEXTS[:1]))
    (row,) = extractor.extract_once(model, input_ids=torch.tensor(TEXTS[1:2])).values()
    assert len(row) == 1


def test_a_stopped_forward_calls_nothing_deeper_and_the_code_after_it_goes_on() -> None:
    model = small_model("gpt_neox", head=True)
    extractor = ActivationExtractor(["blocks[0]", "blocks[1]:input"], stop=True)
    outputs = []
    with counting(model, "blocks[1].mlp") as deeper, counting(model, "lm_head") as head, extractor.capture(model):
        outputs += [model(input_ids=torch.tensor([text])) for text in TEXTS[:3]]
    assert deeper == head == []
    assert outputs == [None] * 3
    assert [len(row) for row in extractor.get_activations().values()] == [3, 3]
    assert n_hooks(model) == 0
    assert model(input_ids=torch.tensor(TEXTS[:1])).logits is not None


def test_stopping_changes_no_value() -> None:
    model = small_model("gpt2")
    ids, mask = ids_and_mask()
    specs = ["embed", "blocks[-1]", "blocks[-1]:hidden_states"]
    whole, cut = (
        ActivationExtractor(specs, stop=stop).extract_once(model, input_ids=ids, attention_mask=mask)
        for stop in (False, True)
    )
    assert all(torch.equal(whole[spec], cut[spec]) for spec in whole)


def test_hooks_are_gone_after_an_error_in_the_block() -> None:
    model = small_model("gpt2")
    with pytest.raises(ZeroDivisionError), ActivationExtractor(["blocks[0]"], stop=True).capture(model):
        raise ZeroDivisionError
    assert n_hooks(model) == 0
    assert "forward" not in vars(model)


def test_a_forward_that_fails_leaves_no_half_a_batch() -> None:
    model = small_model("gpt2")
    extractor = ActivationExtractor(["embed", "blocks[0]"])
    with torch.no_grad(), extractor.capture(model):
        with pytest.raises(IndexError):
            model(input_ids=torch.tensor(TEXTS[:1]), position_ids=torch.tensor([[10**6] * len(TEXTS[0])]))
        model(input_ids=torch.tensor(TEXTS[1:2]))
    assert [len(row) for row in extractor.get_activations().values()] == [1, 1]


class Twice(nn.Module):
    """Calls its part twice."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.part(self.part(x))
        return y


def test_of_two_calls_in_a_forward_the_first_is_kept() -> None:
    model = Twice()
    x = torch.randn(5, 4)
    (row,) = ActivationExtractor(["part"]).extract_once(model, x).values()
    assert torch.equal(row, model.part(x))


@pytest.mark.parametrize("stop", [False, True])
def test_a_layer_that_was_never_called_is_not_silently_absent(stop: bool) -> None:
    with pytest.raises(UnknownLayer, match="a forward of Twice never called unused:output:mean"):
        ActivationExtractor(["part", "unused"], stop=stop).extract_once(Twice(), torch.randn(5, 4))


def test_calling_another_module_than_the_one_captured_is_refused() -> None:
    model = Twice()
    with (
        pytest.raises(InvalidInput, match="call the model given to capture"),
        ActivationExtractor(["part"]).capture(model),
    ):
        model.part(torch.randn(5, 4))


def test_unknown_and_unreadable_layers_are_refused() -> None:
    model = small_model("gpt2")
    with pytest.raises(UnknownLayer, match="GPT2Model has no layer 'blocks"):
        ActivationExtractor(["blocks[7]"]).extract_once(model, input_ids=torch.tensor(TEXTS[:1]))
    with pytest.raises(InvalidLayer):
        ActivationExtractor(["blocks[0]junk"])
    with pytest.raises(InvalidInput, match="no layer to capture"):
        ActivationExtractor([])
