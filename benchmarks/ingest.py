"""Ingest beside what a user would do instead: interleaved pairs in one run, medians of the paired ratios.

    python benchmarks/ingest.py [--rows 1,3,5] [--repeats 3] [--quick] [--environment DIR]

==== =================================================================================== ==========================
row  what is compared                                                                    target
==== =================================================================================== ==========================
1    one checkpoint, all 12 blocks, float32: the user's loop against ours                2.8 x
2    the same with our ``--dtype bfloat16``                                              4 x
3    the same with our ``--layers blocks[5]``                                            5 x
4    TransformerLens and nnsight against ours, on activations that agree                 1 x
5    fetching and replaying 8 revisions at once, against the longer of the two alone     1.15 x
6    bytes fetched with ``--partial --layers blocks[0:3]``, against the tensors needed   1.01 x
7    peak memory of a process that ingests one checkpoint                                weights + a batch + 300 MB
8    ``replay ingest`` of 154 revisions that are all there                               1.5 s and 1 request
==== =================================================================================== ==========================

The model is a GPT-NeoX of the shape of pythia-160m with random weights, the tokenizer a byte-level BPE of 4,096 tokens
trained on the demonstration's corpus, the probes are the built-in 512. Everybody has 2 threads and finds the files in
the page cache. The hub is the emulator of the tests, asked by the unmodified client. The user's loop is in
``baselines_ingest.py``; it takes 8, 16 or 32 texts at a time, and the verdict is against the fastest of them. Ours is
load, forward, statistics of the weights, staging and commit. What is done once for a checkpoint before that (its files
are hashed, the probes tokenised) is printed on its own.

Row 4 installs each tool into an environment of its own, in the user's cache directory or in ``--environment DIR``.
Row 7 needs Linux. All rows take some minutes a repetition and 3 GB of disk meanwhile; ``--quick`` does with fewer
probes and revisions, once: it shows that every row works, and its verdicts mean nothing. Nor do those of rows 1 to 4 on
a machine with other work: loops whose threads wait for each other at every layer lose more by it than ours.
"""

import importlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
from ingest_setup import (
    HEAD,
    N_WARM,
    ROOT,
    SHAPE,
    THREADS,
    Bench,
    Seconds,
    fetch_once,
    in_child,
    ingest_once,
    interpreter_bytes,
    ratios,
    rotated,
    run,
    spread,
    stored,
    timed,
    walls,
)

TOLERANCE = 1e-4
"""How far activations that should be the same may be apart; theirs are of the order of 1."""


def check_agreement(name: str, theirs: Any, ours: Any) -> None:
    difference = float(np.abs(theirs - ours).max())
    print(f"  {name}: {len(ours)} blocks, {ours.shape[1]} probes, at most {difference:.1e} apart from ours", flush=True)
    if not difference <= TOLERANCE:
        raise click.ClickException(f"{name} and ours are {difference:.1e} apart: they do not compute the same")


def one_checkpoint(bench: Bench, rows: set[int]) -> None:
    """Rows 1 to 3."""
    from baselines_ingest import transformers_loop

    what = {1: "float32, all blocks", 2: "bfloat16, all blocks", 3: "float32, blocks[5]"}
    options: dict[int, dict[str, Any]] = {1: {}, 2: {"dtype": "bfloat16"}, 3: {"layers": ("blocks[5]",)}}
    targets = {1: 2.8, 2: 4.0, 3: 5.0}
    planning: list[Seconds] = []
    target = bench.scratch() / "pooled.npy"

    def theirs(step: str, *, n_texts: int) -> Seconds:
        folder = str(bench.full / step)
        return timed(lambda: transformers_loop(folder, bench.texts, target, n_texts=n_texts))[1]

    def ours(step: str, *, row: int) -> Seconds:
        done = ingest_once(bench.scratch(), n_probes=bench.n_probes, path=bench.full, revision=step, **options[row])
        planning.append(done.planning)
        return done.replaying

    transformers_loop(str(bench.full / "step0"), bench.texts[:N_WARM], target)
    for row in {1, *rows}:
        root = bench.scratch()
        ingest_once(root, n_probes=N_WARM, path=bench.full, revision="step0", **options[row])
        if row == 1:
            # what transformers calls the last hidden state comes after the final norm
            check_agreement("the user's loop", np.load(target)[:-1], stored(root)[:-1])
    tasks: dict[str, Callable[[str], Seconds]] = {f"{n}": partial(theirs, n_texts=n) for n in (8, 16, 32)}
    tasks |= {what[row]: partial(ours, row=row) for row in sorted(rows)}
    seconds: dict[str, list[Seconds]] = {name: [] for name in tasks}
    for repeat in range(bench.repeats):
        for name in rotated(list(tasks), repeat):
            seconds[name].append(tasks[name](f"step{repeat % 2}"))
    best = min(("8", "16", "32"), key=lambda name: statistics.median(walls(seconds[name])))
    for row in sorted(rows):
        mine = seconds[what[row]]
        print(f"row {row}: {what[row]}; ours {spread(walls(mine))} s")
        if row == 2:
            flags = Path("/proc/cpuinfo").read_text().split()
            has = [flag for flag in ("avx512_bf16", "amx_bf16", "bf16") if flag in flags]
            print(f"  bfloat16 in this CPU: {', '.join(has) or 'no'}")
        for name in ("8", "16", "32"):
            print(f"  {name} texts at a time: {spread(walls(seconds[name]))} s, {ratios(seconds[name], mine)}")
        found = ratios(seconds[best], mine)
        bench.add(
            row,
            f"{what[row]}, user's loop of {best} texts / ours",
            str(found),
            f">= {targets[row]} x",
            met=statistics.median(found.wall) >= targets[row],
        )
    print(f"  not in these ratios, once for a checkpoint: hashing and tokenising, {spread(walls(planning))} s")


def tools(bench: Bench) -> None:
    """Row 4."""
    print("row 4: other tools")
    pythons = {
        name: python
        for name in ("transformer-lens", "nnsight")
        if (python := environment(bench.environments / name, name)) is not None
    }
    few, many = bench.scratch() / "few.json", bench.scratch() / "many.json"
    few.write_text(json.dumps(bench.texts[:N_WARM]))
    many.write_text(json.dumps(bench.texts))
    target = bench.scratch() / "pooled.npy"

    def theirs(texts: Path, step: str, *, name: str) -> Seconds:
        loops = ROOT / "benchmarks" / "baselines_ingest.py"
        return Seconds(**json.loads(run(pythons[name], loops, name, bench.full / step, texts, target).splitlines()[-1]))

    def ours(texts: Path, step: str) -> Seconds:
        root, n_probes = bench.scratch(), len(json.loads(texts.read_text()))
        return in_child(ingest_once, root, n_probes=n_probes, path=bench.full, revision=step, warm=bench.full).replaying

    root = bench.scratch()
    ingest_once(root, n_probes=N_WARM, path=bench.full, revision="step0")
    for name in pythons:
        theirs(few, "step0", name=name)
        check_agreement(name, np.load(target), stored(root))
    tasks: dict[str, Callable[[Path, str], Seconds]] = {name: partial(theirs, name=name) for name in pythons}
    tasks["ours"] = ours
    seconds: dict[str, list[Seconds]] = {name: [] for name in tasks}
    for repeat in range(bench.repeats if pythons else 0):
        for name in rotated(list(tasks), repeat):
            seconds[name].append(tasks[name](many, f"step{repeat % 2}"))
    for name in pythons:
        print(f"  {name} {spread(walls(seconds[name]))} s, ours {spread(walls(seconds['ours']))} s")
        found = ratios(seconds[name], seconds["ours"])
        bench.add(4, f"{name} / ours", str(found), "> 1 x", met=statistics.median(found.wall) > 1)


def environment(folder: Path, tool: str) -> Path | None:
    """Return the interpreter of an environment with ``tool``, made if need be; None if it cannot be had."""
    python, made = folder / "bin" / "python", folder / "made-with.txt"
    if not made.exists():
        print(f"  installing {tool} into an environment of its own", flush=True)
        run(sys.executable, "-m", "venv", "--clear", folder)
        ways = {"the torch of constraints.txt": ["--constraint", ROOT / "constraints.txt"], "its own torch": []}
        for way, options in ways.items():
            try:
                run(python, "-m", "pip", "install", "--disable-pip-version-check", *options, tool, "torch")
            except click.ClickException as error:
                print(f"  {tool} cannot be had with {way}: {error.message}")
            else:
                made.write_text(way)
                break
        else:
            print(f"  {tool} is skipped")
            return None
    names = (tool, "torch", "transformers")
    program = f"from importlib.metadata import version\nfor name in {names}: print(name, version(name))"
    print(f"  {', '.join(run(python, '-c', program).splitlines())}: {made.read_text()}")
    return python


def overlap(bench: Bench) -> None:
    """Row 5."""
    n, n_probes = bench.n_overlapped, bench.n_probes
    n_bytes = sum(path.stat().st_size for path in bench.small.glob("*/model.safetensors"))
    repo = bench.publish(bench.small)

    def replay() -> Seconds:
        done = in_child(ingest_once, bench.scratch(), n_probes=n_probes, path=bench.small, warm=bench.small)
        return done.replaying

    bench.hub.bandwidth = n_bytes / replay().wall
    print(f"row 5: {n} revisions of {n_bytes / n / 1e6:.0f} MB at {bench.hub.bandwidth / 1e6:.1f} MB/s a response")
    replays, fetches, both = [], [], []
    for _ in range(bench.repeats):
        replays.append(replay().wall)
        fetches.append(in_child(fetch_once, bench.scratch(), repo=repo, n_probes=n_probes).wall)
        both.append(in_child(ingest_once, bench.scratch(), n_probes=n_probes, repo=repo, warm=bench.small))
    bench.hub.bandwidth = None
    print(f"  replaying alone {spread(replays)} s, fetching alone {spread(fetches)} s")
    print(f"  both {spread([each.replaying.wall for each in both])} s, planning before that "
          f"{spread([each.planning.wall for each in both])} s")  # fmt: skip
    found = [
        (each.planning.wall + each.replaying.wall) / max(alone)
        for each, *alone in zip(both, replays, fetches, strict=True)
    ]
    bench.add(
        5,
        f"ingest of {n} revisions, planning included / the longer of fetching and replaying alone",
        f"{spread(found)} x",
        "<= 1.15 x",
        met=statistics.median(found) <= 1.15,
    )


def partial_bytes(bench: Bench) -> None:
    """Row 6."""
    print("row 6: a partial fetch")
    sizes = tensor_bytes(bench.full / "step0")
    blocks = tuple(f"gpt_neox.layers.{block}." for block in range(3))
    n_needed = sum(size for name, size in sizes.items() if name.startswith(("gpt_neox.embed_in.", *blocks)))
    repo = bench.publish(bench.full)
    bench.hub.log.clear()
    in_child(
        ingest_once,
        bench.scratch(),
        n_probes=N_WARM,
        repo=repo,
        revision="step0",
        layers=("blocks[0:3]",),
        partial=True,
    )
    n_fetched, n_all = bench.hub.bytes_served(r"GET .*\.safetensors"), bench.hub.bytes_served()
    print(f"  the whole file has {sum(sizes.values()) / 1e6:.1f} MB, the tensors needed {n_needed / 1e6:.1f} MB")
    print(f"  served: {n_all / 1e6:.1f} MB, of weight files {n_fetched / 1e6:.1f} MB in "
          f"{len(bench.hub.requests(r'GET /lfs/.*safetensors'))} requests")  # fmt: skip
    bench.add(
        6,
        "bytes of weight files fetched / bytes of the tensors needed",
        f"{n_fetched / n_needed:.4f} x",
        "<= 1.01 x",
        met=n_fetched <= 1.01 * n_needed,
    )


def tensor_bytes(folder: Path) -> dict[str, int]:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as opened:
        return {name: opened.get_tensor(name).nbytes for name in opened.offset_keys()}


def memory(bench: Bench) -> None:
    """Row 7."""
    from replay.plan import IngestRequest
    from replay.probes import builtin_probes

    n_tokens = IngestRequest(probes=builtin_probes()).batch_tokens
    # of one block: residual stream, its two norms, sum, attention (query, key, value, result), both sides of the MLP
    n_batch = 4 * THREADS * n_tokens * (8 * SHAPE["hidden_size"] + 2 * SHAPE["intermediate_size"])
    sizes = tensor_bytes(bench.full / "step0")
    n_weights = sum(size for name, size in sizes.items() if not name.startswith(HEAD))
    n_interpreter = in_child(interpreter_bytes)
    limit = n_weights + n_batch + 300e6
    print(
        f"row 7: weights without the head, in float32 {n_weights / 1e6:.0f} MB; {THREADS} batches of {n_tokens} tokens"
    )
    print(f"  in a block {n_batch / 1e6:.0f} MB; an interpreter that has imported torch, transformers and zarr "
          f"{n_interpreter / 1e6:.0f} MB")  # fmt: skip
    for name, folder in (("float32", bench.full), ("float16", bench.half)):
        done = in_child(ingest_once, bench.scratch(), n_probes=bench.n_probes, path=folder, revision="step0")
        for what, n_bytes in (("", done.peak_bytes), (" beyond the interpreter", done.peak_bytes - n_interpreter)):
            bench.add(
                7,
                f"peak memory{what}, {name} file",
                f"{n_bytes / 1e6:.0f} MB",
                f"<= {limit / 1e6:.0f} MB",
                met=n_bytes <= limit,
            )


def nothing_to_do(bench: Bench) -> None:
    """Row 8."""
    repo, root = bench.publish(bench.tiny), bench.scratch() / "store"
    command = (sys.executable, "-m", "cli", "--store", root, "ingest", "--repo", repo, "--revisions", "all")
    print(f"row 8: {bench.n_present} revisions, first ingest {timed(partial(run, *command))[1].wall:.1f} s", flush=True)
    seconds, requests = [], []
    for _ in range(bench.repeats):
        bench.hub.log.clear()
        seconds.append(timed(partial(run, *command))[1].wall)
        requests.append(len(bench.hub.requests()))
    bench.add(
        8,
        f"ingest of {bench.n_present} revisions that are all there",
        f"{spread(seconds)} s, {max(requests)} requests",
        "<= 1.5 s, 1 request",
        met=statistics.median(seconds) <= 1.5 and max(requests) == 1,
    )


OTHERS: dict[int, Callable[[Bench], None]] = {4: tools, 5: overlap, 6: partial_bytes, 7: memory, 8: nothing_to_do}


def caches() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "replay-benchmarks"


@click.command()
@click.option("--rows", default="1,2,3,4,5,6,7,8", show_default=True, help="Rows to measure.")
@click.option("--repeats", default=3, show_default=True, help="Paired repetitions.")
@click.option("--quick", is_flag=True, help="Fewer probes and revisions, one repetition; no verdict to be trusted.")
@click.option("--environment", type=click.Path(path_type=Path), help="Where the environments of row 4 are kept.")
def main(rows: str, repeats: int, quick: bool, environment: Path | None) -> None:
    """Measure ingest beside what a user would do instead."""
    unknown = set(rows.split(",")) - set("12345678")
    if unknown:
        raise click.BadParameter(f"{min(unknown)!r} is no row: give some of 1 to 8 with commas between them")
    chosen = set(map(int, rows.split(",")))
    sys.path.append(str(ROOT / "tests"))
    hub = importlib.import_module("hub").Hub()
    with tempfile.TemporaryDirectory(prefix="replay-bench-") as name, hub:
        # before anything imports torch or the hub's client, here and in all children
        environ = hub.environ(Path(name) / "hf", OMP_NUM_THREADS=str(THREADS), OPENBLAS_NUM_THREADS=str(THREADS))
        os.environ.clear()
        os.environ.update(environ)
        bench = Bench(
            folder=Path(name),
            hub=hub,
            environments=(environment or caches()).resolve(),
            repeats=1 if quick else repeats,
            n_probes=64 if quick else 512,
            n_overlapped=3 if quick else 8,
            n_present=12 if quick else 154,
        )
        packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers"))
        print(
            f"{packages}; {THREADS} threads; {bench.n_probes} probes; {bench.repeats} repetitions; "
            f"load of the machine {os.getloadavg()[0]:.1f}"
        )
        try:
            if chosen & {1, 2, 3}:
                one_checkpoint(bench, chosen & {1, 2, 3})
            for row in sorted(chosen & OTHERS.keys()):
                OTHERS[row](bench)
        finally:  # what was measured before a row failed is worth its time
            print("\nrow  verdict  what: measured; target")
            for line in bench.lines:
                verdict = "met" if line.met else "missed"
                print(f"{line.row:>3}  {verdict:<7}  {line.what}: {line.measured}; {line.target}")
    if quick:
        print("quick: every row works; the verdicts mean nothing")


if __name__ == "__main__":
    main()
