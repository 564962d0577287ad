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
    for layer in ("blocks[0]:output:mean", "blocks[1]:output:mean", "blocks[2]:output:mean"):
        assert layer in text
    assert ">0<" in text  # step 0 stands on the logarithmic axis
    assert ">100,000<" in text


def test_even_steps_get_a_linear_axis(tmp_path: Path) -> None:
    text = svg(result(1, list(range(0, 1001, 100))), tmp_path)
    assert "training step<" in text
    assert "log scale" not in text


def test_many_layers_are_named_by_a_colour_bar_that_shows_the_first_and_last(tmp_path: Path) -> None:
    text = svg(result(40, UNEVEN), tmp_path)
    assert "blocks[0]:output:mean" in text
    assert "blocks[39]:output:mean" in text
    assert text.count(":output:mean<") == 8


def test_equal_results_give_equal_files(tmp_path: Path) -> None:
    assert svg(result(2, UNEVEN), tmp_path) == svg(result(2, UNEVEN), tmp_path)


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
    with pytest.raises(InvalidInput, match="steps and layers"):
        plot_spread(result(1, UNEVEN).isel(layer=[]), tmp_path / "spread.png")
    assert not list(tmp_path.iterdir())


def test_drawing_leaves_pyplot_alone(tmp_path: Path) -> None:
    already = "matplotlib.pyplot" in sys.modules
    svg(result(1, UNEVEN), tmp_path)
    assert ("matplotlib.pyplot" in sys.modules) == already
