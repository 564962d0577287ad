"""The language-model loss on the probes: that of the plain model, within memory, or a reason why there is none."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner, Result
from runs import tokenizer, write_model
from small_models import N_TOKENS, small_model

import cli
from replay import models
from replay.analyses.loss import mean_loss, probe_loss
from replay.analyses.selection import Choice
from replay.analyses.series import read_series
from replay.arrays import ArrayProbes
from replay.loss import token_losses
from replay.models import load_language_model
from replay.opening import open_store
from replay.plan import IngestRequest
from replay.probes import Probe, ProbeSet
from store.catalog import Store
from store.errors import InvalidInput, InvalidProbes, MismatchedWeights, Unavailable

GEMMA = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "vocab_size": N_TOKENS,
}
ODD_HEADS = {
    "soft cap": lambda: transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**GEMMA, final_logit_softcapping=2.0)),
    "scaled": lambda: transformers.CohereForCausalLM(transformers.CohereConfig(**GEMMA, logit_scale=0.25)),
    "tied": lambda: small_model("llama", head=True, tie_word_embeddings=True),
    "untied": lambda: small_model("llama", head=True, tie_word_embeddings=False),
}


def probes(n_probes: int = 12, *, seed: int = 0) -> list[list[int]]:
    """Return token ids of texts of 2 to 13 tokens."""
    rng = np.random.default_rng(seed)
    return [rng.integers(1, N_TOKENS, size=2 + i % 12).tolist() for i in range(n_probes)]


def plain_losses(folder: Path, token_ids: list[list[int]]) -> np.ndarray:
    """What transformers itself says of one unpadded text at a time, in nats per token."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    losses = []
    for ids in token_ids:
        with torch.no_grad():
            losses.append(model(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item())
    return np.array(losses)


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


@pytest.mark.parametrize("family", ["gpt_neox", "gpt2", "qwen2", "opt", "bloom"])
def test_the_loss_of_each_text_is_that_of_the_plain_model_on_it_alone(family: str, tmp_path: Path) -> None:
    small_model(family, head=True).save_pretrained(tmp_path)
    found = token_losses(load_language_model(tmp_path), probes(), batch_tokens=40)
    np.testing.assert_array_equal(found.n_tokens, [len(ids) - 1 for ids in probes()])
    np.testing.assert_allclose(found.nll / found.n_tokens, plain_losses(tmp_path, probes()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", ODD_HEADS)
def test_soft_caps_scales_and_ties_of_a_head_are_those_of_its_own_forward(head: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ODD_HEADS[head]()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=0.5)
    model.save_pretrained(tmp_path)
    found = token_losses(load_language_model(tmp_path), probes())
    np.testing.assert_allclose(found.nll / found.n_tokens, plain_losses(tmp_path, probes()), rtol=0, atol=1e-5)


def test_the_head_never_returns_more_than_the_bytes_that_logits_may_take(tmp_path: Path) -> None:
    small_model("gpt_neox", head=True).save_pretrained(tmp_path)
    model = load_language_model(tmp_path)
    whole = token_losses(model, probes())
    sizes: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _m, _i, out: sizes.append(4 * out.numel()))
    token_losses(model, probes())
    assert max(sizes) > 20 * 4 * N_TOKENS
    for positions in (1, 3, 20):
        sizes.clear()
        chunked = token_losses(model, probes(), logits_bytes=positions * 4 * N_TOKENS)
        # two texts of one position are looked at first, to see that the model is causal
        assert max(sizes) <= max(2, positions) * 4 * N_TOKENS
        np.testing.assert_allclose(chunked.nll, whole.nll, rtol=1e-6)


def test_a_probe_of_one_token_predicts_nothing_and_counts_for_nothing() -> None:
    model = small_model("gpt2", head=True)
    found = token_losses(model, [[5], [7, 8, 9]], batch_tokens=3)  # a batch of its own
    assert found.nll[0] == 0
    assert found.n_tokens.tolist() == [0, 2]
    assert mean_loss(found.nll, found.n_tokens).loss == pytest.approx(found.nll[1] / 2)
    with pytest.raises(Unavailable, match="every probe is one token"):
        token_losses(model, [[5], [7]])
    with pytest.raises(InvalidProbes, match="no probes"):
        token_losses(model, [])


def test_a_loss_that_is_not_finite_is_none() -> None:
    model = small_model("gpt2", head=True)
    model.transformer.ln_f.weight.data.fill_(torch.nan)
    with pytest.raises(Unavailable, match=r"not finite, first on probe 0"):
        token_losses(model, [[1, 2]])


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("bert", "sees the tokens that it predicts"),
        ("roberta", "sees the tokens that it predicts"),
        ("t5", "'t5' is no causal language model"),
        ("bart", "'bart' is no causal language model"),
    ],
)
def test_a_model_that_does_not_predict_the_next_token_has_no_loss(family: str, reason: str, tmp_path: Path) -> None:
    small_model(family, head=True).save_pretrained(tmp_path)
    with pytest.raises(Unavailable, match=reason):
        token_losses(load_language_model(tmp_path), probes())


def test_files_without_the_head_have_no_loss_unless_it_is_tied(tmp_path: Path) -> None:
    for tied in (False, True):
        small_model("llama", tie_word_embeddings=tied).save_pretrained(tmp_path / str(tied))
    with pytest.raises(Unavailable, match=r"no language-model head: lm_head\.weight not there"):
        load_language_model(tmp_path / "False")
    found = token_losses(load_language_model(tmp_path / "True"), probes())
    np.testing.assert_allclose(found.nll / found.n_tokens, plain_losses(tmp_path / "True", probes()), rtol=0, atol=1e-5)


def test_weights_that_lack_a_block_are_refused_as_for_a_replay(tmp_path: Path) -> None:
    small_model("llama", head=True).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4, "layer_types": None}))
    with pytest.raises(MismatchedWeights, match="missing weights"):
        load_language_model(tmp_path)


def test_the_mean_counts_every_token_alike_and_its_interval_holds_the_truth_in_about_95_of_100_draws() -> None:
    rng = np.random.default_rng(1)
    held = []
    for _ in range(400):
        n_tokens = rng.integers(1, 60, size=120)  # 30 on average; short texts lose more per token
        nll = n_tokens * rng.normal(4, 0.8, size=120) + 10
        low, high = mean_loss(nll, n_tokens).interval or (np.nan, np.nan)
        held.append(low <= 4 + 10 / 30 <= high)
    assert mean_loss(np.array([6.0, 1.0]), np.array([3.0, 4.0])).loss == 1.0
    assert 0.92 <= np.mean(held) <= 0.98


def test_the_interval_of_two_probes_is_none() -> None:
    assert mean_loss(np.array([6.0, 1.0]), np.array([3.0, 4.0])).interval is None


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory, family: Path, probe_file: Path) -> Path:
    """A store of two runs, one of them with losses."""
    root = tmp_path_factory.mktemp("lost") / "store"
    what = ["--probes", probe_file, "--revisions", "step0,step4", "--layers", "blocks[-1]"]
    run("--store", root, "ingest", "--path", family / "seed1", *what)
    run("--store", root, "ingest", "--path", family / "seed2", "--loss", *what)
    return root


def test_an_ingest_keeps_the_loss_of_each_checkpoint(lost: Path, family: Path) -> None:
    found = probe_loss(Store(lost), Choice(runs=["seed2"]))
    encode = tokenizer()
    texts = Store(lost).probes("forty")["text"]
    ids = [encode(text)["input_ids"][:64] for text in texts]
    for step in (0, 4):
        per_text = plain_losses(family / "seed2" / f"step{step}", ids)
        counts = np.array([len(one) - 1 for one in ids])
        expected = float(np.sum(per_text * counts) / np.sum(counts))
        at = found.sel(run="seed2", step=step)
        assert float(at["probe_loss"]) == pytest.approx(expected, abs=1e-5)
        assert float(at["perplexity"]) == pytest.approx(np.exp(expected), rel=1e-4)
        assert float(at["probe_loss_low"]) < expected < float(at["probe_loss_high"])
        assert str(at["revision"].item()) == f"step{step}"
    assert found.attrs["unavailable"] == []


def test_a_run_without_losses_is_named_beside_one_that_has_them(lost: Path) -> None:
    found = probe_loss(Store(lost))
    assert found.attrs["unavailable"] == [["seed1", 0, "not measured"], ["seed1", 4, "not measured"]]
    assert np.isnan(found["probe_loss"].sel(run="seed1")).all()
    with pytest.raises(Unavailable, match="no loss was measured of seed1 on forty: `replay ingest --loss`"):
        probe_loss(Store(lost), Choice(runs=["seed1"]))


def test_the_loss_is_a_series_over_training(lost: Path) -> None:
    (series,) = read_series(open_store(lost, write=True), ["probe_loss"], choice=Choice(runs=["seed2"]))
    expected = probe_loss(Store(lost), Choice(runs=["seed2"])).isel(run=0)
    assert (series.run, series.layer, series.steps.tolist()) == ("seed2", "", [0, 4])
    np.testing.assert_array_equal(series.values, expected["probe_loss"])
    assert series.error is not None
    assert (series.error > 0).all()


def test_a_loss_asked_for_later_is_measured_without_a_second_replay_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probe_file: Path, family: Path
) -> None:
    loaded: list[str] = []
    for name in ("load_model", "load_language_model"):
        original = getattr(models, name)

        def noting(*given: Any, name: str = name, original: Any = original, **options: Any) -> Any:
            loaded.append(name)
            return original(*given, **options)

        monkeypatch.setattr(models, name, noting)
    what = ["--path", family / "seed1", "--probes", probe_file, "--revisions", "step0,step1"]
    seen = []
    for more in ([], ["--loss"], ["--loss"], []):
        run("--store", tmp_path / "s", "ingest", *what, *more)
        seen.append([*loaded])
        loaded.clear()
    assert seen == [["load_model"] * 2, ["load_language_model"] * 2, [], []]


def test_a_masked_model_keeps_its_layers_and_the_reason_why_it_has_no_loss(tmp_path: Path, probe_file: Path) -> None:
    write_model(tmp_path / "bert" / "step3", seed=1, step=3, family="bert")
    what = ["--store", tmp_path / "s", "ingest", "--path", tmp_path / "bert", "--probes", probe_file, "--loss"]
    first = run(*what)
    assert "1 checkpoints replayed" in first.stdout
    assert "no loss: bert, 1 checkpoints: BertLMHeadModel sees the tokens that it predicts" in first.stderr
    assert "0 checkpoints replayed, 1 already there" in run(*what).stdout
    assert len(Store(tmp_path / "s").layers("bert")) == 3
    ((name, step, reason),) = probe_loss(Store(tmp_path / "s")).attrs["unavailable"]
    assert (name, step) == ("bert", 3)
    assert "no causal language model" in reason


def test_a_loss_is_refused_where_it_cannot_be_had() -> None:
    texts = ProbeSet("texts", (Probe("a"), Probe("b"), Probe("c")))
    with pytest.raises(InvalidInput, match="leave --partial out"):
        IngestRequest(probes=texts, loss=True, partial=True)
    with pytest.raises(InvalidInput, match="leave --loss out"):
        IngestRequest(probes=ArrayProbes("arrays", np.ones((3, 2), np.float32)), loss=True)
