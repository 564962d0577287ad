"""``replay layers``: what can be captured of a model."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.output import note, print_table

if TYPE_CHECKING:
    import torch
    from torch import nn

    from replay.factories import ModelFactory
    from replay.outline import Outline

__all__ = ["layers"]


@click.command()
@click.option("--repo", metavar="ORG/NAME", help="Hub repository; only its config.json is fetched.")
@click.option(
    "--path",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of checkpoints, as for ingest.",
)
@click.option(
    "--model",
    metavar="FACTORY",
    help="What builds a model that is none of transformers: package.module:function or file.py:function.",
)
@click.option("--prefix", metavar="NAME", help="As for ingest, with --model and --path.")
@click.option("--revision", metavar="NAME", help="Whose architecture is shown; main or else the last one by default.")
@click.option(
    "--layers", "specs", multiple=True, metavar="SPEC", help="Only these, as for ingest: blocks[*], fc*; repeatable."
)
@click.option(
    "--shape", metavar="N,N,…", help="Shape of one array probe, without the probe's own dimension: 3,32,32 or 64."
)
@click.option(
    "--probes",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Array probes that tell shape and type, .npy or .npz.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.pass_obj
def layers(
    store: Path,
    *,
    repo: str | None,
    path: Path | None,
    model: str | None,
    prefix: str | None,
    revision: str | None,
    specs: tuple[str, ...],
    shape: str | None,
    probes: Path | None,
    as_json: bool,
) -> None:
    """List the layers of a model with the shapes they give and the parameters they hold; nothing is written."""
    from replay.factories import read_factory
    from replay.outline import example_input, outline_layers
    from store.errors import InvalidInput

    if repo is not None and path is not None:
        raise InvalidInput("--repo and --path name two models: give one of them")
    if repo is None and path is None and model is None:
        raise InvalidInput("no model to list: give --repo ORG/NAME, --path DIR, or --model file.py:function")
    example = _read_example(shape, probes)
    factory = None if model is None else read_factory(model, prefix=prefix)
    skeleton = _skeleton(store, repo, path, factory, revision)
    outline = outline_layers(
        skeleton,
        example_input(skeleton) if example is None else example,
        specs=specs,
        build=None if factory is None else factory.build,
    )
    if outline.reason is not None and example is not None:
        raise InvalidInput(outline.reason)
    if as_json:
        click.echo(json.dumps(asdict(outline), indent=2))
    else:
        _print(outline)
    if outline.reason is not None:
        note(f"no shapes: {outline.reason}; give --shape 3,32,32 or --probes FILE")
    elif any(len(layer.shape or ()) > 3 for layer in outline.layers):
        note("outputs of more than three dimensions need --reduce flatten or spatial_mean")


def _skeleton(
    store: Path, repo: str | None, path: Path | None, factory: "ModelFactory | None", revision: str | None
) -> "nn.Module":
    from replay.outline import read_skeleton
    from replay.plan import scratch_store
    from replay.sources import open_sources

    if factory is not None and repo is None and path is None:
        return factory.skeleton()
    with scratch_store(store) as opened:
        repos, paths = [repo] if repo else [], [path] if path else []
        (source,) = open_sources(opened, repos=repos, paths=paths, report=note, factory=factory)
        return read_skeleton(source, opened.root / "checkpoints", factory=factory, revision=revision)


def _read_example(shape: str | None, probes: Path | None) -> "torch.Tensor | None":
    import torch

    from replay.arrays import read_arrays
    from store.errors import InvalidInput

    if shape is not None and probes is not None:
        raise InvalidInput("--shape and --probes both say what one probe is: give one of them")
    if probes is not None:
        values = torch.from_numpy(read_arrays(probes).values[:1])
        return values.float() if values.is_floating_point() else values
    if shape is None:
        return None
    sizes = [size.strip() for size in shape.split(",")]
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise InvalidInput(f"--shape {shape!r} cannot be read: write whole numbers with commas, such as 3,32,32 or 64")
    return torch.zeros((1, *map(int, sizes)))


def _print(outline: "Outline") -> None:
    rows = [
        (
            layer.layer,
            layer.module,
            layer.kind,
            None if layer.shape is None else _sizes(layer.shape),
            layer.n_parameters,
        )
        for layer in outline.layers
    ]
    print_table(("layer", "module", "class", "output", "parameters"), rows)
    given = "" if outline.input_shape is None else f", outputs for an input of {_sizes(outline.input_shape)}"
    click.echo(f"{outline.model}: {outline.n_parameters:,} parameters{given}")


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
