"""``replay ls``: what the store holds."""

from pathlib import Path
from typing import Any

import click

from cli.output import note, print_frame

__all__ = ["ls"]

_json = click.option("--json", "as_json", is_flag=True, help="Everything, for a program.")


@click.group()
def ls() -> None:
    """List runs, revisions, layers, probes or results."""


@ls.command()
@_json
@click.pass_obj
def runs(store: Path, *, as_json: bool) -> None:
    """List the training runs."""
    from replay.opening import open_store

    print_frame(open_store(store).runs(), as_json=as_json)


@ls.command()
@click.argument("run", required=False)
@_json
@click.pass_obj
def revisions(store: Path, run: str | None, *, as_json: bool) -> None:
    """List the revisions of RUN, or of all runs, with what each is an alias of, what an audit found, why one failed."""
    import pandas as pd

    from replay.opening import open_store

    opened = open_store(store)
    names = [run] if run else list(opened.runs()["run"])
    frames = [opened.revisions(name).assign(run=name) for name in names]
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"run": []})
    if frame.empty and not as_json:
        note("no revision yet: run `replay ingest`")
        return
    columns = ["run", "revision", "step", "state", "alias_of", "layers", "findings", "weights", "error"]
    if not as_json:
        frame["weights"] = frame["weights"].str[:12]
        for column in ("alias_of", "findings", "error"):
            frame[column] = frame[column].fillna("").replace("", "-")
            if (frame[column] == "-").all():
                columns.remove(column)
    print_frame(frame, as_json=as_json, columns=columns)


@ls.command()
@click.argument("run", required=False)
@_json
@click.pass_obj
def layers(store: Path, run: str | None, *, as_json: bool) -> None:
    """List the stored layers of RUN, or of all runs."""
    import pandas as pd

    from replay.opening import open_store

    opened = open_store(store)
    names = [run] if run else list(opened.runs()["run"])
    frames = []
    for name in names:
        frame = opened.layers(name)
        frame.insert(0, "run", name)
        frames.append(frame)
    print_frame(pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"run": []}), as_json=as_json)


@ls.command()
@_json
@click.pass_obj
def probes(store: Path, *, as_json: bool) -> None:
    """List the probe sets."""
    from replay.opening import open_store

    frame = open_store(store).probe_sets()
    if not as_json:
        frame["digest"] = frame["digest"].str[:12]
    print_frame(frame, as_json=as_json)


@ls.command()
@_json
@click.pass_obj
def results(store: Path, *, as_json: bool) -> None:
    """List the analysis results, the newest last."""
    from replay.opening import open_store

    frame = open_store(store).results()
    if not as_json:
        for name in ("runs", "layers", "steps"):
            frame[name] = [len(parameters.get(name, [])) for parameters in frame["parameters"]]
        frame["of"] = [_what(parameters) for parameters in frame["parameters"]]
        frame["key"] = frame["key"].str[:12]
    print_frame(frame, as_json=as_json, columns=None if as_json else ["name", "of", "runs", "layers", "steps", "key"])


def _what(parameters: dict[str, Any]) -> str:
    """Say in a few words what tells a result from others of its name."""
    words = [parameters.get("measure", {}).get("measure"), parameters.get("method"), parameters.get("strategy")]
    words += [f"across {parameters['across']}"] if "across" in parameters else []
    words += [f"{name} {parameters[name]}" for name in ("run", "step", "layer") if name in parameters]
    return ", ".join(word for word in words if word)
