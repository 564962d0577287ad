"""The spread figure: it is written in each format, for few and many layers, and refuses what it cannot draw."""

import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from replay.plots.spread import plot_spread
from store.errors import InvalidInput

UNEVEN = [0, *(2**i for i in range(10)), *range(1000, 144000, 13000)]
SIGNATURES = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


def result(n_layers: int, steps: list[int]) -> xr.Dataset:
    spread = np.exp(-np.outer(np.array(steps) / 1000, np.linspace(0.2, 1, n_layers)))
    variables = {
        name + end: (("step", "layer"), factor * scale * spread)
        for name, scale in (("spread", 2.0), ("spread_normalized", 1.0))
        for end, factor in (("", 1.0), ("_low", 0.9), ("_high", 1.1), ("_ceiling", 1.5))
    }
    layers = [f"blocks[{i}]:output:mean" for i in range(n_layers)]
    return xr.Dataset(variables, {"step": steps, "layer": layers}, {"runs": ["a", "b", "c"], "n_probes": 512})


@pytest.mark.parametrize("suffix", SIGNATURES)
def test_figure_is_written_in_the_format_of_its_suffix(tmp_path: Path, suffix: str) -> None:
    plot_spread(result(3, UNEVEN), tmp_path / f"spread{suffix}")
    assert (tmp_path / f"spread{suffix}").read_bytes().startswith(SIGNATURES[suffix])


def svg(ds: xr.Dataset, folder: Path) -> str:
    plot_spread(ds, folder / "spread.svg")
    return (folder / "spread.svg").read_text()


def test_figure_names_its_axes_runs_probes_and_layers(tmp_path: Path) -> None:
    text = svg(result(3, UNEVEN), tmp_path)
    for words in ("3 runs, 512 probes", "training step (log scale)", "Frobenius norm", "normalised spread", "95 %"):
        assert words in text
    for layer in (">blocks[0]<", ">blocks[1]<", ">blocks[2]<", ">*:output:mean<"):
        assert layer in text
    assert ">0<" in text  # step 0 stands on the logarithmic axis
    assert ">100,000<" in text


def test_even_steps_get_a_linear_axis(tmp_path: Path) -> None:
    text = svg(result(1, list(range(0, 1001, 100))), tmp_path)
    assert "training step<" in text
    assert "log scale" not in text


def test_many_layers_are_named_by_a_colour_bar_that_shows_the_first_and_last(tmp_path: Path) -> None:
    text = svg(result(40, UNEVEN), tmp_path)
    assert ">blocks[0]<" in text
    assert ">blocks[39]<" in text
    assert text.count(">blocks[") == 8
    assert ">layer  *:output:mean<" in text


def test_a_single_layer_is_named_in_the_title(tmp_path: Path) -> None:
    assert "3 runs, 512 probes, blocks[0]:output:mean<" in svg(result(1, UNEVEN), tmp_path)


def test_another_measure_than_frobenius_has_one_panel_that_names_it(tmp_path: Path) -> None:
    ds = result(2, UNEVEN)[[f"spread{end}" for end in ("", "_low", "_high", "_ceiling")]]
    ds.attrs["measure_title"] = "debiased linear CKA"
    text = svg(ds, tmp_path)
    assert "spread  (debiased linear CKA)" in text
    assert text.count("training step (log scale)") == 1
    assert "Frobenius" not in text


def test_a_ceiling_that_is_nowhere_defined_is_not_in_the_legend(tmp_path: Path) -> None:
    ds = result(2, UNEVEN)
    assert "ceiling" in svg(ds, tmp_path)
    for name in ("spread_ceiling", "spread_normalized_ceiling"):
        ds[name] = ds[name] * np.nan
    assert "ceiling" not in svg(ds, tmp_path)


def over_runs(ds: xr.Dataset) -> xr.Dataset:
    names = ("spread", "spread_normalized")
    ends = (("_runs_low", 0.8), ("_runs_high", 1.2))
    return ds.assign({name + end: ds[name] * factor for name in names for end, factor in ends})


def test_an_interval_over_runs_is_drawn_where_it_is_defined_and_legible(tmp_path: Path) -> None:
    words = "95 % interval over runs"
    assert words in svg(over_runs(result(2, UNEVEN)), tmp_path)
    assert words not in svg(over_runs(result(2, UNEVEN)).map(lambda a: a * np.nan if "runs" in a.name else a), tmp_path)
    assert words not in svg(over_runs(result(8, UNEVEN)), tmp_path)


def with_phases(ds: xr.Dataset) -> xr.Dataset:
    phases = [[layer, 0, 64, "flat", 0, -1, 1, 0.1] for layer in ds["layer"].values]
    phases += [[layer, 64, 66000, "falls", -2, -3, -1, 0.99] for layer in ds["layer"].values]
    return ds.assign_attrs(phases=phases)


def test_phases_are_drawn_and_those_that_occur_are_named(tmp_path: Path) -> None:
    text = svg(with_phases(result(3, UNEVEN)), tmp_path)
    assert "phases of convergence" in text
    assert ">falls<" in text
    assert ">flat<" in text
    assert ">rises<" not in text
    assert text.count(">blocks[0]<") == 2  # in the legend and at the strip


def test_phases_are_left_out_where_there_are_none_or_many_layers(tmp_path: Path) -> None:
    assert "phases" not in svg(result(3, UNEVEN), tmp_path)
    assert "phases" not in svg(with_phases(result(11, UNEVEN)), tmp_path)


def test_a_phase_of_no_known_direction_or_layer_is_refused(tmp_path: Path) -> None:
    for phase in (["blocks[0]:output:mean", 0, 64, "sideways"], ["blocks[7]:output:mean", 0, 64, "flat"]):
        with pytest.raises(InvalidInput, match=f"{phase[3]!r} of {phase[0]!r}".replace("[", r"\[")):
            plot_spread(result(1, UNEVEN).assign_attrs(phases=[phase]), tmp_path / "spread.png")


@pytest.mark.parametrize("suffix", SIGNATURES)
def test_equal_results_give_equal_files(tmp_path: Path, suffix: str) -> None:
    files = [tmp_path / f"{name}{suffix}" for name in ("one", "other")]
    for file in files:
        plot_spread(with_phases(over_runs(result(2, UNEVEN))), file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_one_step_zeros_and_gaps_can_be_drawn(tmp_path: Path) -> None:
    svg(result(2, [0]), tmp_path)
    svg(result(2, [512]), tmp_path)
    svg(result(2, UNEVEN).where(lambda ds: ds["step"] != 4), tmp_path)
    svg(result(2, UNEVEN) * 0, tmp_path)


def test_order_of_steps_and_dimensions_does_not_matter(tmp_path: Path) -> None:
    ds = result(2, UNEVEN)
    assert svg(ds.isel(step=slice(None, None, -1)).transpose("layer", "step"), tmp_path) == svg(ds, tmp_path)


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"\.png, \.svg, \.pdf, not '\.jpg'"):
        plot_spread(result(1, UNEVEN), tmp_path / "spread.jpg")
    with pytest.raises(InvalidInput, match="without a suffix"):
        plot_spread(result(1, UNEVEN), tmp_path / "spread")
    with pytest.raises(InvalidInput, match="lacks spread_low"):
        plot_spread(result(1, UNEVEN).drop_vars("spread_low"), tmp_path / "spread.png")
    with pytest.raises(InvalidInput, match=r"one of each at least, not .*'layer': 0"):
        plot_spread(result(1, UNEVEN).isel(layer=[]), tmp_path / "spread.png")
    assert not list(tmp_path.iterdir())


def test_drawing_leaves_pyplot_alone(tmp_path: Path) -> None:
    already = "matplotlib.pyplot" in sys.modules
    svg(result(1, UNEVEN), tmp_path)
    assert ("matplotlib.pyplot" in sys.modules) == already
