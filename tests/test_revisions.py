"""Step names of every suite, training order, and the whole grammar of revision expressions with its errors."""

import random
import re
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise

import pytest

from replay.revisions import DEFAULT_REVISIONS, StepName, compile_step_pattern, order, parse_step, select, sort_key
from store.errors import InvalidSelection, ReplayError, UnknownRevision


@dataclass(frozen=True)
class Revision:
    name: str
    step: int | None = None


PYTHIA_STEPS = [0, *(2**i for i in range(10)), *range(1000, 144_000, 1000)]


def revisions(*names: str) -> list[Revision]:
    """Revisions as a source makes them, in an order of arrival that is no training order."""
    made = [Revision(name, parsed.step if (parsed := parse_step(name)) else None) for name in names]
    random.Random(0).shuffle(made)
    return made


PYTHIA = revisions(*(f"step{step}" for step in PYTHIA_STEPS), "main")
SMALL = revisions("step0", "step1", "step2", "step512", "step1000", "step4000", "main", "fp32")


def names(*specs: str, of: list[Revision] = SMALL) -> list[str]:
    return [revision.name for revision in select(of, specs)]


def message(*specs: str, of: list[Revision] = SMALL, kind: type[ReplayError] = InvalidSelection) -> str:
    with pytest.raises(kind) as caught:
        select(of, specs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Step names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("step0", StepName("pythia", 0)),
        ("step143000", StepName("pythia", 143_000)),
        ("step1000-tokens4B", StepName("olmo", 1000, tokens=4 * 10**9)),
        ("stage1-step101000-tokens424B", StepName("olmo", 101_000, tokens=424 * 10**9, stage=1)),
        (
            "stage2-ingredient2-step9000-tokens38B",
            StepName("olmo", 9000, tokens=38 * 10**9, stage=2, kind="ingredient2"),
        ),
        ("stage1-step1400000-tokens6T", StepName("olmo", 1_400_000, tokens=6 * 10**12, stage=1)),
        ("stage3-step11921", StepName("olmo", 11_921, stage=3)),
        ("step-001000-2BT", StepName("fineweb", 1000, tokens=2 * 10**9)),
        ("google/multiberts-seed_0-step_20k", StepName("multiberts", 20_000)),
        ("multiberts-seed_3-step_2000k", StepName("multiberts", 2_000_000)),
        ("multiberts-seed_3-step_0k", StepName("multiberts", 0)),
        ("global_step1000", StepName("bloom", 1000)),
        ("checkpoint-500", StepName("trainer", 500)),
        ("output/checkpoint-500/", StepName("trainer", 500)),
        ("epoch=1-step=500.ckpt", StepName("lightning", 500, epoch=1)),
        ("myrun-epoch=01-step=0500-v1.ckpt", StepName("lightning", 500, epoch=1)),
        ("epoch=3-val_loss=0.25-step=800.ckpt", StepName("lightning", 800)),
        ("step=800-epoch=3.ckpt", StepName("lightning", 800)),
        ("epoch=10.ckpt", StepName("lightning", epoch=10)),
        ("iter_0373000", StepName("megatron", 373_000)),
        ("pretrain_iter_0373000", StepName("megatron", 373_000, stage=1, kind="pretrain")),
        ("anneal_iter_0001000", StepName("megatron", 1000, stage=2, kind="anneal")),
        ("step_125000", StepName("generic", 125_000)),
        ("model-step-64.pt", StepName("generic", 64)),
        ("checkpoints/run_step20k", StepName("generic", 20_000)),
    ],
)
def test_the_names_of_every_suite_are_read(name: str, expected: StepName) -> None:
    assert parse_step(name) == expected


@pytest.mark.parametrize("name", ["ckpt_000", "ckpt_358"])
def test_an_amber_checkpoint_has_an_index_and_no_step(name: str) -> None:
    assert parse_step(name) == StepName("amber", index=int(name[-3:]))


@pytest.mark.parametrize(
    "name",
    ["main", "fp32", "v1.0", "last.ckpt", "checkpoint-best", "step_1.5k", "stepwise", "1000", "", "step" + "9" * 5000],
)
def test_a_name_without_a_step_has_none(name: str) -> None:
    assert parse_step(name) is None


def test_a_users_pattern_replaces_the_built_in_ones() -> None:
    pattern = r"e(?P<epoch>\d+)_s(?P<step>\d+k?)(?:_t(?P<tokens>\d+B))?(?:_p(?P<stage>\d))?"
    assert parse_step("e2_s20k_t3B_p2", pattern=pattern) == StepName("user", 20_000, tokens=3 * 10**9, epoch=2, stage=2)
    assert parse_step("e2_s7", pattern=re.compile(pattern)) == StepName("user", 7, epoch=2)
    assert parse_step("step1000", pattern=pattern) is None


def test_a_users_pattern_has_to_match_the_whole_name() -> None:
    assert parse_step("ck1000-broken", pattern=r"ck(?P<step>\d+)") is None


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"step(\d+)", r'step regex "step(\d+)" has no group named step; write (?P<step>\d+) where the number stands'),
        (r"(?P<step>\d+", 'step regex "(?P<step>\\d+" is not a regular expression: missing ), unterminated subpattern'),
        (r"(?P<step>\d{99999999999999})", "is not a regular expression"),
        (r"(?P<step>\d+)(?P<loss>.*)", "has a group named loss; known are step, tokens, epoch, stage"),
    ],
)
def test_an_unusable_pattern_is_refused(pattern: str, text: str) -> None:
    with pytest.raises(InvalidSelection) as caught:
        compile_step_pattern(pattern)
    assert text in str(caught.value)


def test_a_pattern_that_takes_letters_for_a_step_is_refused() -> None:
    with pytest.raises(InvalidSelection, match=r'takes "best" for the step of "ck-best", which is not a whole number'):
        parse_step("ck-best", pattern=r"ck-(?P<step>.*)")


# Training order


@pytest.mark.parametrize(
    "expected",
    [
        ["step0", "step2", "step10", "step100", "main"],
        ["epoch=2-step=200.ckpt", "epoch=10-step=1000.ckpt"],
        ["epoch=2.ckpt", "epoch=10.ckpt", "last.ckpt"],
        ["ckpt_2", "ckpt_10", "main"],
        [
            "step500-tokens1B",  # an early upload of stage 1 that lacks the prefix
            "stage1-step1000-tokens4B",
            "stage1-step101000-tokens424B",
            "stage2-ingredient1-step1000-tokens5B",
            "stage2-ingredient2-step1000-tokens5B",
            "stage2-ingredient1-step9000-tokens38B",
            "main",
        ],
        ["pretrain_iter_0001000", "pretrain_iter_0373000", "anneal_iter_0001000"],
        ["step5", "ckpt_001", "fp32", "main"],
    ],
)
def test_names_are_put_in_training_order_and_not_sorted_as_strings(expected: list[str]) -> None:
    for seed in range(5):
        assert order(random.Random(seed).sample(expected, len(expected))) == expected


def test_a_step_from_inside_the_file_beats_the_name() -> None:
    assert sort_key("last.ckpt", step=30) < sort_key("step40")
    assert sort_key("step10", step=50) > sort_key("step40")
    assert [r.name for r in select([Revision("step10", 50), Revision("last.ckpt", 30)], "all")] == [
        "last.ckpt",
        "step10",
    ]


def test_order_uses_the_users_pattern() -> None:
    assert order(["b-2", "a-10", "main"], pattern=r"[ab]-(?P<step>\d+)") == ["b-2", "a-10", "main"]


# The grammar


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("all", ["step0", "step1", "step2", "step512", "step1000", "step4000", "fp32", "main"]),
        ("main", ["main"]),
        ("step512", ["step512"]),
        ("512", ["step512"]),
        ("step512,step0", ["step0", "step512"]),
        (" step512 , step0 ", ["step0", "step512"]),
        ("step1..step1000", ["step1", "step2", "step512", "step1000"]),
        ("step2..step2", ["step2"]),
        ("step3..step999", ["step512"]),  # ends that were never published
        ("0..2", ["step0", "step1", "step2"]),
        ("1000..", ["step1000", "step4000"]),
        ("..step512", ["step0", "step1", "step2", "step512"]),
        ("..", ["step0", "step1", "step2", "step512", "step1000", "step4000"]),
        ("every:500", ["step0", "step1000", "step4000"]),
        ("every:1", ["step0", "step1", "step2", "step512", "step1000", "step4000"]),
        ("last:2", ["step1000", "step4000"]),
        ("last:50", ["step0", "step1", "step2", "step512", "step1000", "step4000"]),
        ("log:1", ["step4000"]),
        ("log:2", ["step0", "step4000"]),
        ("log:50", ["step0", "step1", "step2", "step512", "step1000", "step4000"]),
        ("step*000", ["step1000", "step4000"]),
        ("[fm]*", ["fp32", "main"]),
        ("step?,last:1,main", ["step0", "step1", "step2", "step4000", "main"]),
    ],
)
def test_an_expression_selects(spec: str, expected: list[str]) -> None:
    assert names(spec) == expected


def test_several_expressions_are_a_union_in_training_order_without_repeats() -> None:
    assert names("last:2", "main", "step4000", "0..1") == ["step0", "step1", "step1000", "step4000", "main"]


def test_the_default_is_twenty_on_a_logarithmic_scale() -> None:
    assert DEFAULT_REVISIONS == "log:20"
    assert select(PYTHIA) == select(PYTHIA, "log:20") == select(PYTHIA, ["log:20"])


@pytest.mark.parametrize("word", ["all", "log:2", "0..5", "every:1", "a,b", "step*"])
def test_a_revision_named_like_an_expression_is_found_by_its_name(word: str) -> None:
    there = [Revision(word), *SMALL]
    assert names(word, of=there) == [word]
    assert len(names("*", of=there)) == len(there)


def test_a_number_that_is_a_name_is_that_name_first() -> None:
    assert names("512", of=[Revision("512", 9), Revision("step512", 512)]) == ["512"]


def test_a_range_end_that_is_listed_means_the_step_it_is_known_to_have() -> None:
    there = [Revision("first", 10), Revision("second", 20), Revision("third", 30)]
    assert names("first..second", of=there) == ["first", "second"]


def test_ranges_and_names_follow_the_users_pattern() -> None:
    there = [Revision(f"ck{step}", step) for step in (1, 5, 20, 100)]
    assert [r.name for r in select(there, "ck2..ck50", pattern=r"ck(?P<step>\d+)")] == ["ck5", "ck20"]


STAGED = revisions(
    "stage1-step100-tokens1B", "stage1-step900-tokens9B", "stage2-step100-tokens1B", "stage2-step300-tokens3B", "main"
)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("100..300", ["stage1-step100-tokens1B", "stage2-step100-tokens1B", "stage2-step300-tokens3B"]),
        (
            "stage1-step900-tokens9B..stage2-step200-tokens2B",
            ["stage1-step900-tokens9B", "stage2-step100-tokens1B"],
        ),
        ("stage2-step100-tokens1B..", ["stage2-step100-tokens1B", "stage2-step300-tokens3B"]),
        ("last:1", ["stage2-step300-tokens3B"]),
        ("log:2", ["stage1-step100-tokens1B", "stage2-step300-tokens3B"]),
    ],
)
def test_stages_come_one_after_the_other(spec: str, expected: list[str]) -> None:
    assert names(spec, of=STAGED) == expected


def test_log_spreads_over_all_stages_as_one_training() -> None:
    anew = revisions(*(f"stage{s}-step{n}00" for s in (1, 2) for n in range(1, 9)))
    throughout = revisions(*(f"stage{1 + (n > 8)}-step{n}00" for n in range(1, 17)))
    places = [
        [order(r.name for r in there).index(name) for name in names("log:5", of=there)] for there in (anew, throughout)
    ]
    assert places[0] == places[1] == [0, 1, 3, 7, 15]


# Logarithmic choice


@pytest.mark.parametrize("count", [1, 2, 3, 5, 20, 100, 153, 154, 155, 1000])
@pytest.mark.parametrize(
    "steps",
    [PYTHIA_STEPS, list(range(0, 143_001, 1000)), [0, *range(1, 101), 100_000], list(range(10**6, 10**6 + 300))],
    ids=["pythia", "linear", "gap", "late"],
)
def test_log_gives_the_count_asked_for_with_both_ends(steps: list[int], count: int) -> None:
    chosen = [r.step for r in select(revisions(*(f"step{step}" for step in steps)), f"log:{count}")]
    assert len(chosen) == min(count, len(steps))
    assert chosen[-1] == steps[-1]
    assert count == 1 or chosen[0] == steps[0]


def test_log_takes_every_second_power_when_the_run_was_saved_at_powers() -> None:
    powers = revisions(*(f"step{2**i}" for i in range(17)))
    assert [r.step for r in select(powers, "log:9")] == [4**i for i in range(9)]


def test_log_of_pythia_never_more_than_doubles_the_step() -> None:
    chosen = [r.step or 0 for r in select(PYTHIA, "log:20")]
    assert all(later <= 2 * earlier for earlier, later in pairwise(chosen[1:]))


def test_log_of_a_run_saved_evenly_fills_its_start_but_reaches_as_far() -> None:
    chosen = [r.step or 0 for r in select(revisions(*(f"step{i}000" for i in range(144))), "log:20")]
    assert chosen[:4] == [0, 1000, 2000, 3000]
    assert all(later <= 2 * earlier for earlier, later in pairwise(chosen[1:]))
    assert sum(step > 40_000 for step in chosen) >= 5


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (["main"], ["main"]),
        (["main", "fp32", "v1.0"], ["main"]),
        (["weights"], ["weights"]),
        (["b", "a"], ["a", "b"]),
        (["step5", "main"], ["step5"]),
        (["ckpt_000", "ckpt_001", "main"], ["ckpt_000", "ckpt_001"]),
        ([f"epoch={i}.ckpt" for i in range(3)], ["epoch=0.ckpt", "epoch=1.ckpt", "epoch=2.ckpt"]),
    ],
)
def test_the_default_finds_something_in_a_run_without_steps(there: list[str], expected: list[str]) -> None:
    assert names(DEFAULT_REVISIONS, of=revisions(*there)) == expected


def test_the_default_spreads_over_indices_where_there_are_no_steps() -> None:
    amber = revisions(*(f"ckpt_{i:03d}" for i in range(359)), "main")
    chosen = names("log:20", of=amber)
    assert len(chosen) == 20
    assert chosen[0] == "ckpt_000"
    assert chosen[-1] == "ckpt_358"


# What is refused


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("every:ten", 'revisions "every:ten": "ten" is not a whole number'),
        ("log:", 'revisions "log:": "" is not a whole number'),
        ("last:-5", 'revisions "last:-5": "-5" is not a whole number'),
        ("last:5k", 'revisions "last:5k": "5k" is not a whole number'),
        ("every:" + "9" * 5000, "is not a whole number"),
        ("log:0", 'revisions "log:0": the number has to be 1 or more'),
        ("each:10", 'revisions "each:10": "each" is not one of every:N, log:N, last:N'),
        ("4000..0", 'revisions "4000..0": "4000" comes after "0"; write "0..4000"'),
        ("step512..step1", 'revisions "step512..step1": "step512" comes after "step1"; write "step1..step512"'),
        ("0...4000", 'revisions "0...4000": a range has two ends and two dots, as in 0..4000'),
        ("0..1..2", 'revisions "0..1..2": a range has two ends and two dots, as in 0..4000'),
        ("0..main", 'revisions "0..main": "main" has no step, so no range ends there'),
        ("step0,,step1", 'revisions "step0,,step1": nothing stands where a revision should'),
        ("step0,", 'revisions "step0,": nothing stands where a revision should'),
        ("", 'revisions "": nothing stands where a revision should'),
        ("5..9", 'revisions "5..9" selects nothing; there are 6 revisions with a step, from 0 to 4000'),
        ("main,5..9", 'revisions "5..9" selects nothing; there are 6 revisions with a step, from 0 to 4000'),
    ],
)
def test_a_malformed_expression_is_refused_with_the_part_that_is_wrong(spec: str, text: str) -> None:
    assert message(spec).endswith(text)


def test_a_range_that_runs_back_over_stages_is_refused() -> None:
    assert "comes after" in message("stage2-step100-tokens1B..stage1-step900-tokens9B", of=STAGED)


@pytest.mark.parametrize("spec", ["every:10", "last:5", "0..10", "log:1"])
def test_steps_asked_of_a_run_without_any_are_refused_with_a_way_out(spec: str) -> None:
    assert message(spec, of=revisions("fp32", "fp16")) == (
        f'revisions "{spec}" needs steps and no revision has one (fp16, fp32); '
        "name them, use a glob, or give --step-regex"
    )


@pytest.mark.parametrize(
    ("spec", "culprit"),
    [("step3", "step3"), ("stp*", "stp*"), ("3", "3"), ("ALL", "ALL"), ("step0,step3..x", "x"), ("log5", "log5")],
)
def test_what_is_not_there_is_named_as_unknown(spec: str, culprit: str) -> None:
    assert f'"{culprit}"' in message(spec, kind=UnknownRevision)


def test_an_unknown_name_lists_the_nearest_first() -> None:
    assert message("stp512", kind=UnknownRevision).startswith('no revision "stp512"; there are step512, ')
    assert message("0..stp512", kind=UnknownRevision).startswith(
        'revisions "0..stp512": "stp512" is no step and no revision; there are step512, '
    )


def test_a_long_list_is_cut_short() -> None:
    text = message("step1001", of=PYTHIA, kind=UnknownRevision)
    assert text.startswith('no revision "step1001"; there are step1000, ')
    assert text.endswith(", … and 147 more")
    assert text.count(",") == 8


def test_a_short_list_is_given_whole() -> None:
    assert message("x", of=revisions("b", "a"), kind=UnknownRevision) == 'no revision "x"; there are a, b'


def test_an_expression_of_many_lines_gives_an_error_of_one() -> None:
    assert '"a b"' in message("a\nb", kind=UnknownRevision)


def test_asking_for_nothing_or_of_nothing_is_refused() -> None:
    assert message() == "no revisions were asked for; give a name, a range, all or log:20"
    assert message("all", of=[]) == "there is nothing to select from: the source has no revisions"


def test_the_module_is_imported_without_any_heavy_one() -> None:
    code = "import sys, replay.revisions; print({'torch', 'transformers', 'pandas', 'xarray'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
