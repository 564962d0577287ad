"""The figures of spectra, paths, similarities, embeddings and merges: written, legible, equal for equal results."""

from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.text import Text

from replay.geometry.embedding import diffusion_map
from replay.geometry.gauge import DiffusionGauge
from replay.plots.colours import label_palette, run_palette, shorten
from replay.plots.embedding import plot_embedding
from replay.plots.figure import step_ticks
from replay.plots.merge import plot_merge
from replay.plots.multislice import plot_multislice
from replay.plots.path import plot_path
from replay.plots.similarity import plot_similarity
from replay.plots.spectrum import plot_spectrum
from replay.plots.spread import plot_spread
from store.errors import InvalidInput

FEW = [0, 500, 1000]
UNEVEN = [0, *(2**i for i in range(10)), *range(1000, 144000, 13000)]
PYTHIA = [0, *(2**i for i in range(10)), *range(1000, 144000, 1000)]
AXES = ("run", "step", "layer")
SIGNATURES = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}

Plot = Callable[[xr.Dataset, Path], None]


def runs(n: int) -> list[str]:
    return [f"EleutherAI/pythia-160m-seed{i + 1}" for i in range(n)]


def layers(n: int) -> list[str]:
    return [f"gpt_neox.layers[{i}]:output:mean" for i in range(n)]


def grid(n_runs: int, steps: list[int], n_layers: int, variables: dict[str, Any]) -> xr.Dataset:
    coords = {"run": runs(n_runs), "step": steps, "layer": layers(n_layers)}
    attrs = {"runs": runs(n_runs), "n_probes": 512, "measure_title": "normalised Frobenius distance"}
    return xr.Dataset(variables, coords, attrs)


def banded(name: str, values: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {f"{name}{end}": (AXES, values * factor) for end, factor in (("", 1.0), ("_low", 0.9), ("_high", 1.1))}


def curves(n_runs: int, steps: list[int], n_layers: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(0)
    fall = np.exp(-np.outer(np.log1p(steps) / 6, np.linspace(0.4, 1, n_layers)))
    return fall + 0.02 * rng.random((n_runs, len(steps), n_layers))


def spread(n_runs: int, steps: list[int], n_layers: int) -> xr.Dataset:
    fall = curves(1, steps, n_layers)[0]
    ends = (("", 1.0), ("_low", 0.9), ("_high", 1.1), ("_ceiling", 1.4), ("_runs_low", 0.8), ("_runs_high", 1.2))
    variables = {
        f"{name}{end}": (("step", "layer"), factor * fall)
        for name in ("spread", "spread_normalized")
        for end, factor in ends
    }
    phases = [[layer, steps[0], steps[-1], "falls", -1, -2, -0.5, 0.99] for layer in layers(n_layers)]
    attrs = {"runs": runs(n_runs), "n_probes": 512, "phases": phases}
    return xr.Dataset(variables, {"step": steps, "layer": layers(n_layers)}, attrs)


def spectrum(n_runs: int, steps: list[int], n_layers: int) -> xr.Dataset:
    values = curves(n_runs, steps, n_layers)
    variables: dict[str, Any] = {}
    uniform = {}
    for name, scale in (
        ("spectral_gap", 0.5),
        ("stationary_entropy", 6.0),
        ("von_neumann_entropy", 5.0),
        ("diffusion_spectral_entropy", 4.0),
        ("neighbourhood_mean", 120.0),
        ("neighbourhood_median", 100.0),
    ):
        variables |= banded(name, scale * values)
        uniform[name] = 1.2 * scale
    variables["eigenvalues"] = ((*AXES, "rank"), values[..., None] ** np.arange(30))
    uniform["neighbourhood_mean"] = 511.0
    return grid(n_runs, steps, n_layers, variables).assign_attrs(uniform=uniform)


def paths(n_runs: int, steps: list[int], n_layers: int) -> xr.Dataset:
    values = curves(n_runs, steps, n_layers)
    speeds = values / (1 + np.array(steps)[:, None])
    turns = np.where((np.array(steps) == steps[0])[:, None], np.nan, values)
    quantities = {
        "velocity": speeds,
        "velocity_log": values,
        "length": values.cumsum(axis=1),
        "distance_to_final": values - values[:, -1:],
        "curvature": turns,
    }
    return grid(n_runs, steps, n_layers, {k: v for name, a in quantities.items() for k, v in banded(name, a).items()})


def similarity(across: str, n: int, n_panels: int) -> xr.Dataset:
    rng = np.random.default_rng(0)
    labels = {"layers": layers(n), "runs": runs(n), "steps": [str(step) for step in PYTHIA[:n]]}[across]
    values = np.exp(-np.abs(np.subtract.outer(np.arange(n), np.arange(n))) / n) - 0.1 * rng.random((n_panels, n, n))
    values = (values + values.transpose(0, 2, 1)) / 2
    null = np.full_like(values, 0.02)
    for matrix, chance in zip(values, null, strict=True):
        np.fill_diagonal(matrix, 1)
        np.fill_diagonal(chance, np.nan)
    panels = [f"{run}, {layer}" for run in runs(3) for layer in layers(12)][:n_panels]
    dims = ("panel", "row", "column")
    attrs = {"runs": runs(3), "n_probes": 512, "across": across, "measure_title": "debiased linear CKA"}
    variables = {"similarity": (dims, values), "null": (dims, null), "label": ("row", labels)}
    return xr.Dataset(variables, {"panel": panels}, attrs)


def embedding(n_runs: int, steps: list[int], n_layers: int) -> xr.Dataset:
    t = np.log1p(steps) / np.log1p(steps[-1])
    turn = np.linspace(0, 2, n_runs)
    points = [[np.stack([2 * t, np.sin(2 * t + a) + a * t + layer], -1) for a in turn] for layer in range(n_layers)]
    variables: dict[str, Any] = {
        "embedding": (("layer", "point", "component"), np.reshape(points, (n_layers, -1, 2))),
        "trustworthiness": ("layer", np.linspace(0.97, 0.91, n_layers)),
        "random_agreement": ("layer", np.full(n_layers, 0.52)),
    }
    at = {"run": ("point", np.repeat(runs(n_runs), len(steps))), "step": ("point", np.tile(steps, n_runs))}
    attrs = {"runs": runs(n_runs), "n_probes": 512, "method": "phate", "measure_title": "Hellinger distance of rows"}
    return xr.Dataset(variables, {"layer": layers(n_layers), **at}, attrs)


def merged(n_probes: int, n_labels: int) -> xr.Dataset:
    rng = np.random.default_rng(0)
    label = np.arange(n_probes) % max(1, n_labels)
    X = 2 * rng.normal(size=(max(1, n_labels), 8))[label] + rng.normal(size=(n_probes, 8))
    P = DiffusionGauge()(X)
    variables = {
        "operator": (("probe", "probe_to"), P.matrix),
        "phate": (("probe", "component_phate"), X[:, :2]),
        "diffusion_map": (("probe", "component_diffusion_map"), diffusion_map(P).points),
        "label": ("probe", np.array([f"topic {i}" if n_labels else "" for i in label], object)),
    }
    attrs = {"runs": runs(3), "merging": {"strategy": "ot_barycenter"}, "step": 143000, "layer": layers(4)[3]}
    return xr.Dataset(variables, attrs=attrs)


def multislice(steps: list[int], n_probes: int, n_labels: int) -> xr.Dataset:
    rng = np.random.default_rng(0)
    label = np.arange(n_probes) % max(1, n_labels)
    ends = rng.normal(size=(max(1, n_labels), 2))[label] + 0.3 * rng.normal(size=(n_probes, 2))
    points = np.log1p(steps)[:, None, None] * ends
    names = np.array([f"topic {i}" if n_labels else "" for i in label], object)
    variables = {"multislice": (("step", "probe", "component"), points), "label": ("probe", names)}
    return xr.Dataset(variables, {"step": steps}, {"runs": runs(1), "n_probes": n_probes, "layer": layers(4)[3]})


CASES: dict[str, tuple[Plot, Callable[[], xr.Dataset]]] = {
    "spread of 3 runs, 3 layers": (plot_spread, lambda: spread(3, UNEVEN, 3)),
    "spread of 9 runs, 10 layers": (plot_spread, lambda: spread(9, PYTHIA, 10)),
    "spread, one panel, one layer": (plot_spread, lambda: spread(5, FEW, 1).drop_vars("spread_normalized")),
    "spread, 40 layers": (plot_spread, lambda: spread(2, UNEVEN, 40)),
    "spectrum, one run, one layer": (plot_spectrum, lambda: spectrum(1, FEW, 1)),
    "spectrum, 9 runs, 40 layers": (plot_spectrum, lambda: spectrum(9, UNEVEN, 40)),
    "spectrum, 9 runs, one layer": (plot_spectrum, lambda: spectrum(9, PYTHIA, 1)),
    "path, one run, 2 layers": (plot_path, lambda: paths(1, UNEVEN, 2)),
    "path, 3 runs, 10 layers": (plot_path, lambda: paths(3, FEW, 10)),
    "path, 9 runs, one layer": (plot_path, lambda: paths(9, PYTHIA, 1)),
    "similarity of 12 layers": (plot_similarity, lambda: similarity("layers", 12, 1)),
    "similarity of 154 steps, 12 panels": (plot_similarity, lambda: similarity("steps", 154, 12)),
    "similarity of 9 runs, 4 panels": (plot_similarity, lambda: similarity("runs", 9, 4)),
    "similarity of 2 runs": (plot_similarity, lambda: similarity("runs", 2, 1)),
    "similarity of 40 layers, 20 panels": (plot_similarity, lambda: similarity("layers", 40, 20)),
    "embedding of one run": (plot_embedding, lambda: embedding(1, FEW, 1)),
    "embedding of 9 runs, 4 layers": (plot_embedding, lambda: embedding(9, UNEVEN, 4)),
    "embedding of 3 runs, 12 layers": (plot_embedding, lambda: embedding(3, UNEVEN, 12)),
    "merge with 8 labels": (plot_merge, lambda: merged(120, 8)),
    "merge with 20 labels": (plot_merge, lambda: merged(120, 20)),
    "merge without labels": (plot_merge, lambda: merged(30, 0)),
    "multislice with labels": (plot_multislice, lambda: multislice(UNEVEN, 60, 8)),
    "multislice of 3 runs, 2 layers": (
        plot_multislice,
        lambda: (
            multislice(FEW, 20, 8)
            .expand_dims(run=runs(3), layer=layers(2))
            .assign_attrs(runs=runs(3), trustworthiness=0.9)
        ),
    ),
    "multislice without labels": (plot_multislice, lambda: multislice(PYTHIA, 20, 0)),
}
ONE_OF_EACH = [
    "spread of 3 runs, 3 layers",
    "spectrum, one run, one layer",
    "path, one run, 2 layers",
    "similarity of 2 runs",
    "embedding of one run",
    "merge with 8 labels",
    "multislice with labels",
]


def drawn_texts(figure: Any) -> Iterator[Any]:
    """Every text a reader sees: of ticks within the axes, labels, titles, legends and notes."""
    yield from figure.texts
    for legend in (*figure.legends, *(ax.get_legend() for ax in figure.axes)):
        if legend is not None:
            yield from [legend.get_title(), *legend.get_texts()]
    for ax in figure.axes:
        yield from [*ax.texts, ax.title, ax._left_title, ax._right_title]
        if ax.axison:
            for axis in (ax.xaxis, ax.yaxis):
                yield axis.label
                yield from (tick.label1 for tick in axis._update_ticks() if tick.label1.get_visible())
                yield from (tick.label2 for tick in axis._update_ticks() if tick.label2.get_visible())


def figure_of(plot: Plot, ds: xr.Dataset, path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Draw as for a file, and keep the figure instead of writing it."""
    figures: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: figures.append(self))
    plot(ds, path)
    return figures[0]


def words(plot: Plot, ds: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> str:
    """All lines of text of a figure, each between > and <."""
    figure = figure_of(plot, ds, Path("figure.svg"), monkeypatch)
    lines = [line for text in drawn_texts(figure) if text.get_visible() for line in text.get_text().splitlines()]
    return "".join(f">{line}<" for line in lines)


@pytest.mark.parametrize("case", CASES)
def test_texts_stand_inside_the_figure_and_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    plot, make = CASES[case]
    figure = figure_of(plot, make(), tmp_path / "figure.svg", monkeypatch)
    figure.draw_without_rendering()
    texts = [text for text in drawn_texts(figure) if text.get_visible() and text.get_text()]
    assert len(texts) > 3
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in texts]  # of the words, without arrows
    width, height = figure.bbox.size
    outside = [words for words, box in boxes if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1]
    assert not outside
    covered = [
        (words, others)
        for (words, box), (others, other) in combinations(boxes, 2)
        if min(box.x1, other.x1) - max(box.x0, other.x0) > 1 and min(box.y1, other.y1) - max(box.y0, other.y0) > 1
    ]
    assert not covered


@pytest.mark.parametrize(("case", "suffix"), list(zip(ONE_OF_EACH, [*SIGNATURES] * 3, strict=False)))
def test_equal_results_give_equal_files_of_the_right_type(tmp_path: Path, case: str, suffix: str) -> None:
    plot, make = CASES[case]
    files = [tmp_path / f"{name}{suffix}" for name in ("one", "other")]
    for file in files:
        plot(make(), file)
    assert files[0].read_bytes().startswith(SIGNATURES[suffix])
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("case", ONE_OF_EACH)
def test_what_cannot_be_written_or_is_missing_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    plot, make = CASES[case]
    with pytest.raises(InvalidInput, match=r"\.png, \.svg, \.pdf, not '\.jpg'"):
        plot(make(), tmp_path / "figure.jpg")
    with pytest.raises(InvalidInput, match=r"lacks|has one of") as refused:
        plot(xr.Dataset(attrs=make().attrs), tmp_path / "figure.png")
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", ONE_OF_EACH)
def test_a_result_without_one_finite_number_is_drawn(tmp_path: Path, case: str) -> None:
    plot, make = CASES[case]
    nothing = make().map(lambda a: a * np.nan if a.dtype.kind == "f" else a)
    plot(nothing, tmp_path / "figure.svg")
    said = {"path": "training step", "similarity": "grey: unavailable", "spread": "training step"}
    words = said.get(case.split(maxsplit=1)[0].strip(","), "unavailable" if case[0] in "em" else "spectral gap")
    assert words in (tmp_path / "figure.svg").read_text()


def svg(plot: Plot, ds: xr.Dataset, folder: Path) -> str:
    plot(ds, folder / "figure.svg")
    return (folder / "figure.svg").read_text()


@pytest.mark.parametrize(("plot", "make"), [(plot_spectrum, spectrum), (plot_path, paths)])
def test_order_of_steps_and_dimensions_does_not_matter(tmp_path: Path, plot: Plot, make: Any) -> None:
    ds = make(2, FEW, 2)
    mixed = ds.isel(step=slice(None, None, -1)).transpose("layer", ..., "run")
    assert svg(plot, mixed, tmp_path) == svg(plot, ds, tmp_path)


def test_colours_are_layers_unless_there_is_one_layer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    many, single = (
        words(plot_path, paths(3, UNEVEN, 4), monkeypatch),
        words(plot_path, paths(3, UNEVEN, 1), monkeypatch),
    )
    assert ">layers[3]<" in many
    assert ">mean of 3 runs<" in many
    assert ">seed3<" not in many
    assert ">seed3<" in single
    assert "mean of" not in single
    assert "512 probes, gpt_neox.layers[0]:output:mean" in single


def test_the_mean_of_runs_stands_only_where_no_run_lacks_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = paths(2, UNEVEN, 2)[["length"]]
    ds["length"][1, 3] = np.nan
    ax = figure_of(plot_path, ds, tmp_path / "figure.svg", monkeypatch).axes[0]
    means = [line.get_ydata() for line in ax.lines if line.get_linewidth() > 1.5]
    assert len(means) == 2
    expected = ds["length"].values[:, :, 0].mean(axis=0)
    np.testing.assert_allclose(means[0], expected)
    assert np.isnan(means[0][3])
    assert np.isfinite(np.delete(means[0], 3)).all()


def test_velocities_over_magnitudes_stand_on_a_logarithmic_axis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = figure_of(plot_path, paths(1, UNEVEN, 2), tmp_path / "figure.svg", monkeypatch).axes
    scales = {ax.get_ylabel(): ax.get_yscale() for ax in axes}
    assert scales["velocity per 1,000 steps"] == "log"
    assert scales["length of the path so far"] == "linear"
    still = paths(1, UNEVEN, 2)
    still["velocity"][0, 5] = 0
    axes = figure_of(plot_path, still, tmp_path / "figure.svg", monkeypatch).axes
    assert axes[0].get_yscale() == "symlog"  # a run that stands still stays on it


def test_a_quantity_that_is_not_there_has_no_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    text = words(plot_spectrum, spectrum(2, UNEVEN, 2)[["spectral_gap"]], monkeypatch)
    assert "spectral gap" in text
    assert "entropy" not in text
    assert "eigenvalues" not in text


def test_the_walk_that_sees_no_geometry_is_a_line_or_where_it_is_far_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    text = words(plot_spectrum, spectrum(1, UNEVEN, 2), monkeypatch)
    assert text.count(">no geometry<") == 5
    assert text.count(">no geometry: 511 ↑<") == 1


def test_a_quantity_over_other_dimensions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"spectral_gap to plot lies over \(run, step, layer\)"):
        plot_spectrum(spectrum(2, UNEVEN, 2)[["spectral_gap"]].isel(run=0), tmp_path / "figure.png")
    with pytest.raises(InvalidInput, match="component"):
        plot_embedding(embedding(2, UNEVEN, 2).isel(component=[0]), tmp_path / "figure.png")
    with pytest.raises(InvalidInput, match="square"):
        plot_merge(merged(30, 2).isel(probe_to=slice(10)), tmp_path / "figure.png")


def test_cells_carry_numbers_up_to_twelve_rows_and_grey_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (
        words(plot_similarity, similarity("layers", 12, 1), monkeypatch),
        words(plot_similarity, similarity("layers", 13, 1), monkeypatch),
    )
    assert few.count(">1.00<") >= 12
    assert ">1.00<" not in many
    assert "unavailable" not in few
    holed = similarity("layers", 12, 1)
    holed["similarity"][0, 3] = np.nan
    assert "grey: unavailable" in words(plot_similarity, holed, monkeypatch)


def test_the_null_is_marked_on_the_colour_bar_and_lies_on_its_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = similarity("runs", 5, 2)
    assert ">relabelled<" in words(plot_similarity, ds, monkeypatch)
    assert "relabelled" not in words(plot_similarity, ds.assign(null=ds["null"] * np.nan), monkeypatch)
    far = ds.assign(null=ds["null"] - 3)
    bar = figure_of(plot_similarity, far, tmp_path / "figure.svg", monkeypatch).axes[-1]
    assert bar.get_ylim()[0] == pytest.approx(-2.98)


@pytest.mark.parametrize(("sense", "lightest"), [("similarity", "greatest"), ("distance", "least")])
def test_light_is_alike_for_similarities_and_distances(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sense: str, lightest: str
) -> None:
    ds = similarity("runs", 5, 1).assign_attrs(sense=sense)
    image = figure_of(plot_similarity, ds, tmp_path / "figure.svg", monkeypatch).axes[0].images[0]
    low, high = (sum(image.cmap(end)[:3]) for end in (0.0, 1.0))
    assert (high > low) == (lightest == "greatest")


def test_what_panels_share_is_in_the_title_and_the_rest_above_them(monkeypatch: pytest.MonkeyPatch) -> None:
    text = words(plot_similarity, similarity("steps", 20, 3), monkeypatch)
    assert "512 probes" in text
    assert text.count("EleutherAI/pythia-160m-seed1") == 1
    for layer in layers(3):
        assert f">{layer}<" in text


def test_a_single_matrix_needs_no_panel_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    ds = similarity("runs", 3, 1).isel(panel=0, drop=True)
    assert ">seed3<" in words(plot_similarity, ds, monkeypatch)


def test_more_panels_than_a_page_holds_are_refused(tmp_path: Path) -> None:
    ds = similarity("runs", 2, 1)
    with pytest.raises(InvalidInput, match="holds 36 similarity matrices, and there are 37"):
        plot_similarity(xr.concat([ds] * 37, "panel", data_vars="minimal"), tmp_path / "figure.png")


def test_an_embedding_says_how_far_each_layer_can_be_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    text = words(plot_embedding, embedding(3, UNEVEN, 2), monkeypatch)
    assert ">trustworthiness 0.97 (at random 0.52)<" in text
    assert ">trustworthiness 0.91 (at random 0.52)<" in text
    plain = embedding(1, UNEVEN, 1).drop_vars(["trustworthiness", "random_agreement", "layer"]).isel(layer=0)
    plain.attrs |= {"trustworthiness": 0.88, "trustworthiness_null": 0.49}
    assert ">trustworthiness 0.88 (at random 0.49)<" in words(plot_embedding, plain, monkeypatch)


def test_ends_of_a_path_are_named_by_step_and_of_several_by_run(monkeypatch: pytest.MonkeyPatch) -> None:
    single, several = (
        words(plot_embedding, embedding(1, UNEVEN, 1), monkeypatch),
        words(plot_embedding, embedding(3, UNEVEN, 1), monkeypatch),
    )
    assert ">step 0<" in single
    assert ">step 131,000<" in single
    assert several.count(">step 0<") < 3  # they begin close together
    assert several.count(">seed2<") == 2  # in the legend and at the end


def test_a_path_joins_checkpoints_in_the_order_of_their_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ds = embedding(2, UNEVEN, 1)
    ds["embedding"][0, 4] = np.nan
    mixed = ds.isel(point=np.random.default_rng(0).permutation(ds.sizes["point"]))
    drawn = [figure_of(plot_embedding, d, tmp_path / "figure.svg", monkeypatch).axes[0].lines for d in (ds, mixed)]
    paths = [sorted(tuple(map(tuple, line.get_xydata())) for line in lines) for lines in drawn]
    assert paths[0] == paths[1]
    assert sorted(len(path) for path in paths[0]) == [len(UNEVEN) - 1, len(UNEVEN)]
    assert all(np.diff([x for x, _ in path]).min() > 0 for path in paths[0])  # x grows with the step


def test_both_axes_of_a_plane_have_one_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for plot, ds in ((plot_embedding, embedding(3, UNEVEN, 2)), (plot_merge, merged(40, 3))):
        axes = figure_of(plot, ds, tmp_path / "figure.svg", monkeypatch).axes[:2]
        for ax in axes:
            (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
            assert ax.get_box_aspect() == 1
            assert x1 - x0 == pytest.approx(y1 - y0)
            points = ax.collections[0].get_offsets()
            assert (points.min(axis=0) > (x0, y0)).all()
            assert (points.max(axis=0) < (x1, y1)).all()


def test_probes_of_a_merge_are_ordered_by_label_then_by_diffusion_coordinate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = merged(60, 4)
    image = figure_of(plot_merge, ds, tmp_path / "figure.svg", monkeypatch).axes[2].images[0].get_array()
    place = sorted(range(60), key=lambda i: (str(ds["label"].values[i]), float(ds["diffusion_map"][i, 0])))
    expected = 60 * ds["operator"].values[np.ix_(place, place)].astype(np.float64)
    np.testing.assert_allclose(np.asarray(image), np.maximum(expected, image.min()), rtol=1e-6)


def test_up_to_twenty_labels_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ">topic 19<" in words(plot_merge, merged(60, 20), monkeypatch)
    text = words(plot_merge, merged(60, 21), monkeypatch)
    assert "topic" not in text
    assert "by diffusion coordinate" in text
    assert "ot barycenter" in text
    assert "step 143,000" in text


def test_probes_without_a_label_among_others_have_a_colour_of_their_own() -> None:
    palette, positions = label_palette(xr.Dataset({"label": ("probe", np.array(["b", "", "a", None], object))}))
    assert palette.names == ["(none)", "a", "b"]
    assert positions.tolist() == [2, 0, 1, 0]
    assert len(set(palette.colours)) == 3


def test_every_probe_at_every_step_is_drawn_and_some_are_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = multislice(UNEVEN, 60, 8)
    ds["multislice"][2, 7] = np.nan
    axes = figure_of(plot_multislice, ds, tmp_path / "figure.svg", monkeypatch).axes
    left, right = axes[0], axes[1]
    for ax in (left, right):
        points = ax.collections[0].get_offsets()
        assert len(points) == 60 * len(UNEVEN) - 1
        assert len(ax.lines) == 24
        assert len(ax.lines[0].get_xdata()) == len(UNEVEN)
    assert len(np.unique(left.collections[0].get_facecolors(), axis=0)) == len(UNEVEN)
    assert len(np.unique(right.collections[0].get_facecolors(), axis=0)) == 8


def test_each_run_and_layer_of_a_multislice_has_its_planes_and_their_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = multislice(FEW, 20, 3)
    signs = xr.DataArray([[1, -1], [2, -2]], {"run": runs(2), "layer": layers(2)}, ("run", "layer"))
    several = one.assign(multislice=one["multislice"] * signs).assign_attrs(runs=runs(2))
    several["trustworthiness"] = (("run", "layer"), [[0.91, 0.92], [0.93, np.nan]])
    several["random_agreement"] = (("run", "layer"), np.full((2, 2), 0.5))
    figure = figure_of(plot_multislice, several, tmp_path / "figure.svg", monkeypatch)
    titles = [ax._left_title.get_text() for ax in figure.axes if ax.collections and ax._left_title.get_text()]
    trust = ["seed1, layers[0]\ntrustworthiness 0.91 (at random 0.50)", "seed2, layers[1]"]
    assert [titles[0], titles[3]] == trust
    first, last = figure.axes[0].collections[0].get_offsets(), figure.axes[2].collections[0].get_offsets()
    np.testing.assert_allclose(last, -first)
    with pytest.raises(InvalidInput, match="holds 12 multislice embeddings, and there are 16"):
        plot_multislice(several.isel(layer=[0, 1] * 4), tmp_path / "figure.svg")


def test_names_are_cut_at_boundaries_to_what_tells_them_apart() -> None:
    assert shorten(["org/m-seed1", "org/m-seed12"], "/-_") == (["seed1", "seed12"], "org/m-*")
    assert shorten(layers(2), ".:") == (["layers[0]", "layers[1]"], "gpt_neox.*:output:mean")
    assert shorten(["embed:output:mean", "blocks[0]:output:mean"], ".:") == (["embed", "blocks[0]"], "*:output:mean")
    assert shorten(["a-b", "a-c-b"], "/-_") == (["a-b", "a-c-b"], "")  # nothing would be left of the first
    assert shorten(["seed1", "seed2"], "/-_") == (["seed1", "seed2"], "")
    assert shorten(["org/m"], "/-_") == (["org/m"], "")


def test_runs_have_distinct_colours_however_many() -> None:
    for n in (1, 9, 25):
        assert len({tuple(np.atleast_1d(colour).tolist()) for colour in run_palette(runs(n)).colours}) == n


def test_a_step_axis_is_logarithmic_where_steps_are_uneven_and_has_step_0() -> None:
    assert step_ticks(np.array(UNEVEN, float)) == [0, 1, 10, 100, 1000, 10000, 100000]
    assert step_ticks(np.array(UNEVEN, float), n_decades=4) == [0, 1, 100, 10000]
    assert step_ticks(np.array(UNEVEN[1:], float)) == [1, 10, 100, 1000, 10000, 100000]
    assert step_ticks(np.arange(0, 1001, 100.0)) is None
    assert step_ticks(np.array([0.0])) is None
    assert step_ticks(np.array([0.0, 0.0, 100.0, 200.0, 200.0])) is None  # a step that several runs share counts once
