"""Weights' statistics are right and reproducible; copies of other steps are found, training is not."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from small_models import small_model

from replay.weighing import (
    UploadFault,
    Weighing,
    cosine,
    distance,
    find_faults_in_series,
    find_upload_faults,
    neighbours,
    read_weighing,
    weigh,
    weighing_arrays,
)
from store.catalog import open_segment
from store.errors import InvalidInput
from store.segments import publish, stage

Tensors = dict[str, torch.Tensor]

STEPS = [0, *(2**power for power in range(10)), *range(1000, 31000, 1000)]
LAST = len(STEPS) - 1
SHAPES = {
    "net.embed.weight": (60, 16),
    **{
        f"net.layers.{block}.{name}": shape
        for block in range(3)
        for name, shape in {
            "norm.weight": (16,),
            "up.weight": (48, 16),
            "up.bias": (48,),
            "down.weight": (16, 48),
        }.items()
    },
    "net.norm.weight": (16,),
}
BLOCK = "net.layers.1"


def same(a: Weighing, b: Weighing) -> bool:
    return a.groups == b.groups and all(
        getattr(a, field.name).tobytes() == getattr(b, field.name).tobytes() for field in fields(a)[1:]
    )


def exact_distance(a: Tensors, b: Tensors, group: str) -> float:
    names = [name for name in a if name.startswith(f"{group}.")]
    return float(sum(((a[name].double() - b[name].double()) ** 2).sum() for name in names) ** 0.5)


def training(
    seed: int,
    *,
    dtype: torch.dtype = torch.float16,
    decay: bool = True,
    drift: bool = False,
    jump: int | None = None,
    spikes: Sequence[int] = (),
) -> list[Tensors]:
    """Simulate a run: weights that wander off their start towards a goal, as fast as warm-up and decay let them.

    A drift goes on to the end; without it the run soon wanders about its goal. A jump at a revision displaces weights
    and goal for good, a spike displaces the weights of one revision alone.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensors:
        return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}

    ones = {name: torch.ones(shape) if "norm" in name else torch.zeros(shape) for name, shape in SHAPES.items()}
    goal = {name: ones[name] + value for name, value in draw().items()}
    weights = {name: ones[name] + 0.2 * value * ("norm" not in name) for name, value in draw().items()}
    history, before = [], 0.0
    for revision, step in enumerate(STEPS):
        share = step / STEPS[-1]
        rate_sum = (2 if drift else 12) * min(step / 200, 1) * (share - share**2 / 2.2 if decay else share)
        stay = np.exp(before - rate_sum)
        before = rate_sum
        wander = (0.1 if drift else 0.4) * np.sqrt(1 - stay**2)
        noise = draw()
        weights = {n: goal[n] + (w - goal[n]) * stay + wander * noise[n] for n, w in weights.items()}
        if revision == jump:
            push = draw()
            weights = {n: w + 1.5 * push[n] for n, w in weights.items()}
            goal = {n: g + 1.5 * push[n] for n, g in goal.items()}
        shown = weights
        if revision in spikes:
            push = draw()
            shown = {n: w * 1.3 + push[n] for n, w in weights.items()}
        history.append({n: w.to(dtype) for n, w in shown.items()})
    return history


@cache
def clean(seed: int) -> tuple[list[Tensors], list[Weighing]]:
    dtype = (torch.float16, torch.bfloat16, torch.float32)[seed % 3]
    history = training(seed, dtype=dtype, decay=seed % 2 == 0, drift=seed % 4 < 2)
    return history, [weigh(tensors) for tensors in history]


def swapped(seed: int, swaps: dict[int, int], *, group: str = "") -> list[Weighing]:
    """Give each revision of ``swaps`` the weights of another, as a whole or in one group."""
    history, weighings = clean(seed)
    planted = list(weighings)
    for revision, source in swaps.items():
        taken = {name: value for name, value in history[source].items() if name.startswith(group)}
        planted[revision] = weigh(history[revision] | taken)
    return planted


def found(faults: list[UploadFault]) -> dict[int, int]:
    return {fault.revision: fault.like for fault in faults}


def test_blocks_and_modules_are_weighed_to_the_closed_form() -> None:
    tensors = {
        "net.layers.10.up.weight": torch.full((3, 4), 2.0),
        "net.layers.2.up.weight": torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]]),
        "net.layers.2.down.0.weight": torch.tensor([[0.0, 2.0]], dtype=torch.bfloat16),
        "net.norm.weight": torch.ones(9, dtype=torch.float16),
        "scale": torch.tensor(2.0),
        "net.layers.2.attention.bias": torch.ones(1, 1, 8, 8),
        "net.layers.2.attention.rotary_emb.inv_freq": torch.ones(4),
        "net.position_ids": torch.arange(8),
    }
    weighing = weigh(tensors)
    assert weighing.groups == ("net.layers.2", "net.layers.10", "net.norm", "scale")
    assert weighing.entries.tolist() == [8, 12, 9, 1]
    np.testing.assert_allclose(weighing.norm**2, [130, 48, 9, 4], rtol=1e-14)
    np.testing.assert_allclose(weighing.row_norm, [3.5, 4, np.nan, np.nan])  # rows of 5, 1, 10 and 2
    assert np.sort(weighing.sample[0]).tolist() == [*[0] * 6, 1, 2, 3, 4, 6, 8]  # two are 0, four fill up
    assert same(weighing, weigh(dict(reversed(tensors.items()))))
    with pytest.raises(InvalidInput, match="no floating-point weights among 1 tensors"):
        weigh({"net.position_ids": torch.arange(8)})


def test_entries_that_are_not_finite_are_counted_and_leave_no_number_behind() -> None:
    weights = torch.ones(300, 2000)
    weights[1, 5] = torch.nan
    weights[299, 1999] = torch.inf
    weights[299, 0] = -torch.inf
    broken = weigh({"a.weight": weights, "b.weight": torch.ones(4, 4)})
    whole = weigh({"a.weight": torch.ones(300, 2000), "b.weight": torch.zeros(4, 4)})
    assert broken.nonfinite.tolist() == [3, 0]
    assert np.isfinite(broken.norm).tolist() == [False, True]
    assert np.isnan(distance(broken, whole)).tolist() == [True, False]
    assert np.isnan(cosine(whole, broken)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_result_is_the_same_with_any_number_of_threads_and_any_layout(dtype: torch.dtype) -> None:
    weights = torch.randn(700, 1100, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        once = weigh({"a.weight": weights})
        torch.set_num_threads(4)
        assert same(once, weigh({"a.weight": weights}))
        assert same(once, weigh({"a.weight": weights.T.contiguous().T}))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(once.norm[0], weights.double().square().sum().sqrt().item(), rtol=1e-6)
    np.testing.assert_allclose(once.row_norm[0], np.median(weights.double().norm(dim=1).numpy()), rtol=1e-6)
    assert once.spacing[0] == torch.finfo(dtype).eps


def test_a_row_longer_than_a_chunk_is_weighed_whole() -> None:
    weights = torch.randn(2, 600_000, generator=torch.Generator().manual_seed(0))
    weighing = weigh({"a.weight": weights})
    np.testing.assert_allclose(weighing.row_norm[0], weights.double().norm(dim=1).mean().item(), rtol=1e-6)


def test_distances_of_a_model_are_estimated_within_the_stated_error() -> None:
    errors = []
    for seed in range(8):
        first = small_model("gpt_neox", vocab_size=2000, hidden_size=64, intermediate_size=256).state_dict()
        generator = torch.Generator().manual_seed(seed)
        second = {name: w * 0.9 + 0.1 * torch.randn(w.shape, generator=generator) for name, w in first.items()}
        a, b = weigh(first), weigh(second)
        for group, estimate, angle in zip(a.groups, distance(a, b), cosine(a, b), strict=True):
            true = exact_distance(first, second, group)
            if a.entries[a.groups.index(group)] <= 4096:
                np.testing.assert_allclose(estimate, true, rtol=1e-6)
            else:
                errors.append(estimate / true - 1)
                names = [name for name in first if name.startswith(f"{group}.")]
                p, q = (torch.cat([w[name].double().flatten() for name in names]) for w in (first, second))
                assert abs(float(angle) - float(torch.cosine_similarity(p, q, dim=0))) < 0.01
    assert len(errors) == 32
    assert 0.004 < np.sqrt(np.mean(np.square(errors))) < 0.02  # normal changes: 0.011
    assert abs(np.mean(errors)) < 0.006


def test_a_sample_hardly_misses_small_tensors_beside_large_ones() -> None:
    first = {"a.0.up.weight": torch.zeros(500, 500), "a.0.norm.weight": torch.ones(500)}
    second = first | {"a.0.norm.weight": 1 + torch.randn(500, generator=torch.Generator().manual_seed(0))}
    true = exact_distance(first, second, "a.0")
    assert abs(distance(weigh(first), weigh(second))[0] / true - 1) < 0.15  # 8 of 4,096 entries in proportion to size


def test_distances_have_a_scale_and_equal_checkpoints_none() -> None:
    a = weigh({"a.weight": torch.ones(8, 8), "b.weight": torch.zeros(4, 4)})
    b = weigh({"a.weight": -torch.ones(8, 8), "b.weight": torch.zeros(4, 4)})
    assert distance(a, a).tolist() == [0, 0]
    assert distance(a, b).tolist() == [16, 0]
    np.testing.assert_allclose(distance(a, b, relative=True), [np.sqrt(2), 0])
    np.testing.assert_array_equal(cosine(a, b), [-1, np.nan])
    with pytest.raises(InvalidInput, match="differ in groups or sizes"):
        distance(a, weigh({"a.weight": torch.ones(8, 8)}))


def test_a_stored_weighing_is_read_back_to_the_bit(root: Path) -> None:
    weighing = clean(0)[1][3]
    staged = stage(root, "abcdef", kind="weighing", arrays=weighing_arrays(weighing), attrs={})
    publish(root, staged)
    assert same(read_weighing(open_segment(root, staged.id)), weighing)


def test_neighbours_are_tabulated_by_revision_and_group() -> None:
    steps, weighings = STEPS[:5], clean(0)[1][:5]
    table = neighbours(steps, weighings)
    assert table.norm.shape == table.row_norm.shape == table.to_final.shape == (5, 5)
    assert np.isnan(table.to_previous[0]).all()
    assert np.isnan(table.to_next[-1]).all()
    np.testing.assert_array_equal(table.to_previous[1:], table.to_next[:-1])
    np.testing.assert_array_equal(table.to_previous[3], distance(weighings[2], weighings[3]))
    np.testing.assert_array_equal(table.to_final[1], distance(weighings[1], weighings[4]))
    assert not table.to_final[-1].any()
    assert neighbours([7], weighings[:1]).to_next.shape == (1, 5)
    with pytest.raises(InvalidInput, match="step 1 follows step 2"):
        neighbours([0, 2, 1], weighings[:3])
    with pytest.raises(InvalidInput, match="2 steps for 3 weighings"):
        find_upload_faults([0, 1], weighings[:3])
    with pytest.raises(InvalidInput, match="step 9: checkpoints differ"):
        find_upload_faults([0, 9], [weighings[0], weigh({"a.weight": torch.ones(2, 2)})])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("event", ["nothing", "jump", "spikes"])
def test_training_is_never_called_a_fault(seed: int, event: str) -> None:
    jump = 15 + seed if event == "jump" else None
    spikes = (1, 14, 20 + seed) if event == "spikes" else ()
    history = training(seed, decay=seed % 2 == 0, drift=seed < 2, jump=jump, spikes=spikes)
    assert find_upload_faults(STEPS, [weigh(tensors) for tensors in history]) == []


@pytest.mark.parametrize("spikes", [(3,), (1, 3, 5)])
def test_weights_that_hardly_move_around_a_spike_are_no_copies(spikes: tuple[int, ...]) -> None:
    history, weighings = clean(1)
    early = []
    for revision in range(7):
        generator = torch.Generator().manual_seed(revision)
        spike = 3.0 if revision in spikes else 0.02 if revision == 0 else 0.0
        moved = {name: w + spike * torch.randn(w.shape, generator=generator) for name, w in history[0].items()}
        early.append(weigh(moved))
    assert find_upload_faults(STEPS, [*early, *weighings[7:]]) == []


def test_a_stale_copy_across_a_wide_gap_of_steps_is_no_spike() -> None:
    revisions = [0, 1, 2, 3, 4, 20, 30, 35, LAST]
    weighings = [swapped(0, {30: 4})[revision] for revision in revisions]
    assert found(find_upload_faults([STEPS[revision] for revision in revisions], weighings)) == {6: 4}


def test_rounding_that_flickers_is_no_copy() -> None:
    history, weighings = clean(1)  # bfloat16
    still = history[0]
    flicker = {name: weights.clone() for name, weights in still.items()}
    for weights in flicker.values():
        weights.flatten()[:2] *= 1 + torch.finfo(torch.bfloat16).eps
    early = [weigh(flicker if revision in (3, 7, 9) else still) for revision in range(12)]
    assert find_upload_faults(range(40), [*early, *weighings[13:]]) == []


PLANTS: dict[str, Callable[[int], tuple[dict[int, int], str]]] = {
    "the model by the final one": lambda seed: ({3 + 7 * seed: LAST}, ""),
    "a block by the final one": lambda seed: ({4 + 7 * seed: LAST}, BLOCK),
    "a block by an earlier one": lambda seed: ({12 + 5 * seed: 5 + seed}, BLOCK),
    "the model by the last but one": lambda seed: ({12 + 5 * seed: 10 + 5 * seed}, ""),
    "several by the final one": lambda seed: ({2 + seed: LAST, 14: LAST, 16: LAST, 30 + seed: LAST}, ""),
    "three in a row": lambda seed: (dict.fromkeys(range(13 + seed, 16 + seed), LAST), ""),
    "the beginning": lambda seed: (dict.fromkeys(range(4 + seed), LAST), ""),
    "two among weights that hardly move": lambda seed: ({1: LAST, 3: LAST}, ""),
    "two blobs by turns": lambda seed: (
        {20 + seed: LAST - 1, 21 + seed: LAST, 22 + seed: LAST - 1},
        "",
    ),
    "half of them": lambda seed: (dict.fromkeys(range(seed % 2, LAST - 1, 2), LAST), ""),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("plant", PLANTS)
def test_copies_of_other_steps_are_found_with_their_source(plant: str, seed: int) -> None:
    swaps, group = PLANTS[plant](seed)
    faults = find_upload_faults(STEPS, swapped(seed, swaps, group=group))
    assert found(faults) == swaps
    groups = (group,) if group else clean(seed)[1][0].groups
    assert all(fault.exact and fault.groups == groups and fault.step == STEPS[fault.revision] for fault in faults)


def test_a_fault_is_told_in_one_line() -> None:
    (fault,) = find_upload_faults(STEPS, swapped(0, {20: LAST}, group=BLOCK))
    assert fault.text == (
        f"step {STEPS[20]}: 1 of 5 groups (net.layers.1) are equal to those of a later step, {STEPS[LAST]}: "
        "an upload fault, not training"
    )


def test_the_final_weights_in_another_precision_are_found() -> None:
    history, weighings = clean(0)
    rounded = weigh({name: weights.bfloat16() for name, weights in history[LAST].items()})
    (fault,) = find_upload_faults(STEPS, [*weighings[:20], rounded, *weighings[21:]])
    assert (fault.revision, fault.like, fault.exact) == (20, LAST, False)
    assert "off the trend, its weights are nearest to" in fault.text


def test_copies_of_weights_that_are_nowhere_else_accuse_each_other() -> None:
    weighings = swapped(1, {14: LAST, 22: LAST})[:-8]
    assert found(find_upload_faults(STEPS[:-8], weighings)) == {14: 22, 22: 14}


def test_the_end_of_a_run_is_not_accused_of_its_departure_alone() -> None:
    weighings = clean(0)[1]
    other = clean(4)[1]
    assert find_upload_faults(STEPS, [*weighings[:-1], other[-1]]) == []
    assert find_upload_faults(STEPS, [other[0], *weighings[1:]]) == []


def test_a_broken_group_does_not_hide_the_fault_of_another() -> None:
    history, _ = clean(0)
    weighings = swapped(0, {20: LAST})
    for revision in (5, 19):
        weighings[revision] = weigh(history[revision] | {"net.norm.weight": torch.full((16,), torch.nan)})
    assert found(find_upload_faults(STEPS, weighings)) == {20: LAST}


# EleutherAI/pythia-12b, input embeddings (issue #206 of EleutherAI/pythia): median row norm, cosine to the initial ones
PYTHIA = {
    49000: (1.5169, 0.5935),
    50000: (1.3056, 0.5110),
    51000: (1.5132, 0.5869),
    57000: (1.5003, 0.5695),
    58000: (1.3056, 0.5110),
    59000: (1.4952, 0.5646),
    141000: (1.30, np.nan),
}


@pytest.mark.parametrize("left_out", [None, 50000, 58000, 141000])
@pytest.mark.parametrize("n_features", [1, 2])
def test_the_published_faults_of_pythia_are_found_from_scalars(left_out: int | None, n_features: int) -> None:
    rows = {step: row[:n_features] for step, row in PYTHIA.items() if step != left_out}
    faults = find_faults_in_series(list(rows), np.array(list(rows.values())))
    assert [fault.step for fault in faults] == [step for step in (50000, 58000) if step != left_out]
    if left_out is None:
        assert {list(rows)[fault.like] for fault in faults} == {141000}
    if left_out == 141000:
        assert [(list(rows)[fault.like], fault.exact) for fault in faults] == [(58000, True), (50000, True)]


def series(seed: int) -> npt.NDArray[np.float64]:
    """Simulate a norm that rises and falls and a cosine that falls, in 100 revisions, with noise."""
    time = np.linspace(0, 1, 100)
    smooth = np.stack([1 + 0.6 * np.sin(2.5 * time), 1 - 0.5 * time], axis=1)
    noise: npt.NDArray[np.float64] = np.random.default_rng(seed).normal(size=smooth.shape)
    return smooth + 0.002 * noise


@pytest.mark.parametrize("seed", range(10))
def test_a_series_tells_copies_from_jumps_spikes_and_noise(seed: int) -> None:
    steps, values = range(100), series(seed)
    assert find_faults_in_series(steps, values) == []
    walk = np.random.default_rng(seed).normal(size=(100, 2)).cumsum(axis=0)
    assert find_faults_in_series(steps, walk) == []
    spiked = values.copy()
    spiked[[30, 60]] += [[0.8, -0.3], [0.4, 0.5]]
    assert find_faults_in_series(steps, spiked) == []
    jumped = values + np.where(np.arange(100)[:, None] >= 50, 0.5, 0)
    assert find_faults_in_series(steps, jumped) == []
    copied = values.copy()
    copied[[20 + seed, 40]] = copied[99]
    assert found(find_faults_in_series(steps, copied)) == {20 + seed: 99, 40: 99}


def test_what_does_not_come_back_or_is_a_flicker_of_rounding_is_no_fault_in_a_series() -> None:
    levels = np.concatenate([np.zeros(20), [1.0], np.full(20, 2.0), np.ones(20)])
    levels += 0.002 * np.random.default_rng(0).normal(size=61)
    assert find_faults_in_series(range(61), levels[:, None]) == []
    rounded = np.full((40, 1), 1.50)
    rounded[[10, 20, 21, 30]] = 1.51
    assert find_faults_in_series(range(40), rounded) == []
    quiet = 1 + np.random.default_rng(0).normal(size=(100, 1)) * np.where(np.arange(100) < 50, 1e-6, 2e-3)[:, None]
    quiet[[10, 30]] = 1.0001
    assert find_faults_in_series(range(100), quiet) == []


def test_a_series_of_another_shape_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"values have the shape \(3,\); expected \(revision, feature\) for 3 steps"):
        find_faults_in_series([0, 1, 2], np.zeros(3))
    with pytest.raises(InvalidInput, match="step 1 follows step 2"):
        find_faults_in_series([0, 2, 1], np.zeros((3, 1)))
