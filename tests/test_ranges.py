"""Some tensors of a checkpoint by HTTP ranges: few bytes, the right ones, and again where it stopped."""

import json
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
from hub import Hub
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError
from safetensors.torch import load_file, save_file
from small_models import small_model

from replay.capture import replay_probes
from replay.layers import expand_layers
from replay.models import layer_model, load_model, needed_weights, read_weights
from replay.sources import hub as hub_module
from replay.sources import retries
from replay.sources.hub import HubSource
from replay.sources.ranges import PartialWeights, fetch_tensors, plan_tensors
from store.commits import RevisionRecord
from store.errors import CheckpointError, DamagedWeights, MissingWeights, SourceUnreachable

ASKED = ["blocks[0:3]"]
PIECE = 1 << 20


@dataclass(frozen=True)
class Remote:
    """A checkpoint on the hub and, where it was written from, on disk."""

    repo: str
    commit: str
    files: dict[str, list[object]]
    source: Path

    def fetch(self, folder: Path, wanted: Callable[[str], bool]) -> PartialWeights:
        return fetch_tensors(self.repo, commit=self.commit, files=self.files, wanted=wanted, folder=folder)

    def plan(self, folder: Path, wanted: Callable[[str], bool]) -> PartialWeights:
        return plan_tensors(self.repo, commit=self.commit, files=self.files, wanted=wanted, folder=folder)

    def weights(self) -> dict[str, torch.Tensor]:
        files = sorted(self.source.glob("*.safetensors"))
        return {name: value for file in files for name, value in load_file(file).items()}


def publish(hub: Hub, repo: str, source: Path) -> Remote:
    commit = hub.commit(repo, folder=source)
    blobs = hub.repositories[repo].commits[commit].files
    return Remote(repo, commit, {name: [blob.sha256 or blob.oid, blob.size] for name, blob in blobs.items()}, source)


def write(folder: Path, *, seed: int = 0, **saving: str) -> Path:
    """Write 12 blocks, 21 MB, with the causal masks that old versions saved between the weights."""
    model = small_model("gpt_neox", head=True, hidden_size=192, intermediate_size=768, num_hidden_layers=12)
    weights = {name: value + seed for name, value in model.state_dict().items()}
    for i in range(12):
        weights[f"gpt_neox.layers.{i}.attention.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()
        weights[f"gpt_neox.layers.{i}.attention.masked_bias"] = torch.tensor(-1e9)
    model.save_pretrained(folder, state_dict=weights, **saving)
    return folder


@pytest.fixture(scope="module")
def single(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Remote:
    return publish(hub, "ranges/single", write(tmp_path_factory.mktemp("single")))


@pytest.fixture(scope="module")
def sharded(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Remote:
    return publish(hub, "ranges/sharded", write(tmp_path_factory.mktemp("sharded"), max_shard_size="8MB"))


@pytest.fixture(params=["single", "sharded"])
def remote(request: pytest.FixtureRequest) -> Remote:
    found: Remote = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def wanted(single: Remote) -> Callable[[str], bool]:
    skeleton = layer_model(single.source)
    return needed_weights(skeleton, expand_layers(skeleton, ASKED))


def everything(name: str) -> bool:
    return True


def size_of(weights: Iterable[torch.Tensor]) -> int:
    return sum(value.nbytes for value in weights)


def test_the_wanted_tensors_come_bit_for_bit_and_little_else(
    remote: Remote, wanted: Callable[[str], bool], hub: Hub, tmp_path: Path
) -> None:
    before = hub.bytes_served(remote.repo)
    told = remote.fetch(tmp_path, wanted)
    served = hub.bytes_served(remote.repo) - before
    needed = {name: value for name, value in remote.weights().items() if wanted(name)}
    assert size_of(remote.weights().values()) > 20_000_000
    assert any(".layers.2." in name for name in needed)
    assert not any(".layers.3." in name or name.startswith("embed_out") for name in needed)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == needed.keys() == set(told.names)
    assert all(found[name].dtype == needed[name].dtype and torch.equal(found[name], needed[name]) for name in needed)
    assert told.n_bytes == size_of(needed.values())
    assert served == told.n_fetched <= 1.01 * told.n_bytes


def test_what_was_fetched_replays_as_the_whole_checkpoint_does(
    remote: Remote, wanted: Callable[[str], bool], tmp_path: Path
) -> None:
    remote.fetch(tmp_path, wanted)
    (tmp_path / "config.json").write_bytes((remote.source / "config.json").read_bytes())
    layers = expand_layers(layer_model(tmp_path), ASKED)
    probes = [[5, 9, 11], [7], [3, 1, 4, 1, 5]]
    found = replay_probes(load_model(tmp_path, layers=layers, partial=True), probes, layers)
    whole = replay_probes(load_model(remote.source), probes, layers)
    assert len(found) == 3
    assert all(np.array_equal(found[name], whole[name]) for name in whole)


def test_shards_without_wanted_tensors_are_never_asked_for(
    sharded: Remote, wanted: Callable[[str], bool], hub: Hub, tmp_path: Path
) -> None:
    shard_of = json.loads((sharded.source / "model.safetensors.index.json").read_bytes())["weight_map"]
    unwanted = set(shard_of.values()) - {shard for name, shard in shard_of.items() if wanted(name)}
    assert unwanted
    before = len(hub.requests(sharded.repo))
    sharded.fetch(tmp_path, wanted)
    asked = hub.requests(sharded.repo)[before:]
    assert asked
    assert not any(shard in request.path for request in asked for shard in unwanted)


def test_a_plan_costs_the_headers_and_they_are_not_asked_for_again(
    remote: Remote, wanted: Callable[[str], bool], hub: Hub, tmp_path: Path
) -> None:
    n_start = hub.bytes_served(remote.repo)
    plan = remote.plan(tmp_path, wanted)
    n_planned = hub.bytes_served(remote.repo) - n_start
    assert 0 < n_planned < 0.01 * plan.n_bytes
    assert remote.plan(tmp_path, wanted) == plan
    assert remote.fetch(tmp_path, wanted) == plan
    assert hub.bytes_served(remote.repo) - n_start == plan.n_fetched


def test_neighbours_come_in_one_range(single: Remote, hub: Hub, tmp_path: Path) -> None:
    assert single.plan(tmp_path, everything).n_ranges == 1
    first = single.plan(tmp_path, everything).names[0]
    plan = single.plan(tmp_path, lambda name: name not in (first, "gpt_neox.layers.5.attention.dense.bias"))
    assert plan.n_ranges == 1  # over a gap of 768 bytes
    assert 768 <= plan.n_fetched - plan.n_bytes <= 768 + 2 * (1 << 15)
    single.fetch(tmp_path, lambda name: name not in (first, "gpt_neox.layers.5.attention.dense.bias"))
    whole = single.weights()
    found = load_file(tmp_path / "model.safetensors")
    assert len(found) == len(whole) - 2
    assert all(torch.equal(found[name], whole[name]) for name in found)


@pytest.mark.parametrize("reset", [False, True])
def test_a_broken_download_goes_on_where_it_stopped(
    reset: bool, remote: Remote, wanted: Callable[[str], bool], hub: Hub, tmp_path: Path
) -> None:
    plan = remote.plan(tmp_path / "one", wanted)
    remote.plan(tmp_path / "two", wanted)
    remote.fetch(tmp_path / "one", wanted)
    hub.fail(f"GET /lfs/{remote.repo}/", truncate=3 * PIECE, reset=reset)
    with pytest.raises(httpx2.TransportError):
        remote.fetch(tmp_path / "two", wanted)
    assert not (tmp_path / "two" / "model.safetensors").exists()
    there = (tmp_path / "two" / "model.safetensors.incomplete").stat().st_size
    assert reset or there >= 2 * PIECE  # a reset takes along what the client had not read yet
    n_left = min(plan.n_bytes, (tmp_path / "one" / "model.safetensors").stat().st_size - there)
    before = hub.bytes_served(remote.repo)
    assert remote.fetch(tmp_path / "two", wanted) == plan
    assert n_left <= hub.bytes_served(remote.repo) - before <= 1.01 * n_left
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]
    assert not list((tmp_path / "two").glob("*.incomplete"))


@pytest.mark.parametrize("n_there", [0, 5, 700, 9_001, 3_000_001, -1, None])
def test_a_kill_at_any_byte_leaves_what_the_next_call_completes(
    n_there: int | None, sharded: Remote, wanted: Callable[[str], bool], hub: Hub, tmp_path: Path
) -> None:
    plan = sharded.fetch(tmp_path, wanted)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.incomplete").write_bytes(content[:n_there])
    before = hub.bytes_served(sharded.repo)
    sharded.fetch(tmp_path, wanted)
    assert (tmp_path / "model.safetensors").read_bytes() == content
    n_left = min(len(content) - len(content[:n_there]), plan.n_bytes)
    assert n_left <= hub.bytes_served(sharded.repo) - before <= 1.01 * n_left


def test_what_is_whole_is_not_asked_for_again(
    remote: Remote, wanted: Callable[[str], bool], hub: Hub, tmp_path: Path
) -> None:
    told = remote.fetch(tmp_path, wanted)
    before = len(hub.requests())
    assert remote.fetch(tmp_path, wanted) == told
    assert len(hub.requests()) == before


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.incomplete"])
def test_other_tensors_or_another_checkpoint_are_not_taken_for_these(
    name: str, single: Remote, wanted: Callable[[str], bool], hub: Hub, tmp_path: Path
) -> None:
    other = publish(hub, "ranges/other", write(tmp_path / "other", seed=1))
    assert other.files.keys() == single.files.keys()
    for remote, choice in ((other, wanted), (single, wanted), (single, lambda key: ".layers.7." in key)):
        remote.fetch(tmp_path / "here", choice)
        found = load_file(tmp_path / "here" / "model.safetensors")
        assert found
        assert all(torch.equal(value, remote.weights()[key]) for key, value in found.items())
        (tmp_path / "here" / "model.safetensors").rename(tmp_path / "here" / name)
    assert all(".layers.7." in key for key in load_file(tmp_path / "here" / name))


def test_a_file_that_is_not_the_listed_one_is_damaged(
    single: Remote, wanted: Callable[[str], bool], hub: Hub, tmp_path: Path
) -> None:
    changed = publish(hub, "ranges/changed", write(tmp_path / "changed", seed=2))
    before = hub.bytes_served("ranges/changed")
    with pytest.raises(DamagedWeights, match="is not the file that the repository lists"):
        fetch_tensors(changed.repo, commit=changed.commit, files=single.files, wanted=wanted, folder=tmp_path / "x")
    assert not list((tmp_path / "x").iterdir())
    single.plan(tmp_path / "x", wanted)  # changed after the plan, before the fetch
    with pytest.raises(DamagedWeights, match="is not the file that the repository lists"):
        fetch_tensors(changed.repo, commit=changed.commit, files=single.files, wanted=wanted, folder=tmp_path / "x")
    assert not (tmp_path / "x" / "model.safetensors").exists()
    assert hub.bytes_served("ranges/changed") - before < 4 * PIECE  # what was on its way when it was hung up


def test_a_server_that_sends_whole_files_is_refused(
    single: Remote, wanted: Callable[[str], bool], hub: Hub, tmp_path: Path
) -> None:
    hub.fail("GET /lfs/ranges/single/", status=200)
    with pytest.raises(CheckpointError, match="the server answered 200 instead of 206; fetch it whole"):
        single.fetch(tmp_path, wanted)
    single.fetch(tmp_path, wanted)


@pytest.mark.parametrize(
    ("given", "said"),
    [({}, "no range"), ({"Content-Range": "bytes 0-1/2"}, "bytes 0-1/2"), (None, "the server gave 2")],
)
def test_an_answer_to_another_question_leaves_nothing(
    given: dict[str, str] | None, said: str, single: Remote, wanted: Callable[[str], bool], hub: Hub, tmp_path: Path
) -> None:
    name = "gpt_neox.embed_in.weight"
    single.plan(tmp_path, wanted)
    if given is None:  # the range that was asked for, over a body of two bytes
        content = (single.source / "model.safetensors").read_bytes()
        n_header = 8 + int.from_bytes(content[:8], "little")
        start, stop = (n_header + offset for offset in json.loads(content[8:n_header])[name]["data_offsets"])
        given = {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
    hub.fail("GET /lfs/ranges/single/", status=206, headers=given)
    with pytest.raises(DamagedWeights, match=said):
        single.fetch(tmp_path, lambda key: key == name)
    single.fetch(tmp_path, lambda key: key == name)
    assert torch.equal(load_file(tmp_path / "model.safetensors")[name], single.weights()[name])


def test_what_the_client_raises_passes_unchanged(single: Remote, hub: Hub, tmp_path: Path) -> None:
    hub.fail("GET /ranges/single/resolve", status=503)
    with pytest.raises(HfHubHTTPError) as caught:
        single.fetch(tmp_path, everything)
    assert caught.value.response.status_code == 503
    hub.fail("GET /lfs/ranges/single/", status=429, headers={"Retry-After": "7"})
    with pytest.raises(HfHubHTTPError) as caught:
        single.fetch(tmp_path, everything)
    assert caught.value.response.headers["Retry-After"] == "7"
    with pytest.raises(RevisionNotFoundError):
        fetch_tensors(single.repo, commit="f" * 40, files=single.files, wanted=everything, folder=tmp_path)


def test_memory_stays_at_a_few_pieces(single: Remote, tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        told = single.fetch(tmp_path, everything)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert told.n_bytes > 20 * PIECE
    assert peak < 6 * PIECE


def test_a_body_longer_than_asked_for_is_hung_up_on(sharded: Remote, tmp_path: Path) -> None:
    index = "model.safetensors.index.json"
    files = sharded.files | {index: [sharded.files[index][0], 10]}
    with pytest.raises(DamagedWeights, match="asked for 10 bytes, the server gave more"):
        fetch_tensors(sharded.repo, commit=sharded.commit, files=files, wanted=everything, folder=tmp_path)


# As a source fetches them


@pytest.fixture
def source(remote: Remote, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubSource]:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.01)
    yield HubSource(remote.repo)
    hub.faults.clear()
    hub.bandwidth = None


@pytest.fixture
def record(source: HubSource) -> RevisionRecord:
    return source.describe(source.list_revisions()[0])


def test_what_a_whole_and_a_partial_fetch_left_is_never_taken_for_the_other(
    source: HubSource, record: RevisionRecord, remote: Remote, wanted: Callable[[str], bool], tmp_path: Path
) -> None:
    names = list(record.files)
    killed = source.fetch(record, names, tmp_path / "whole")
    killed.__enter__()
    killed = source.fetch(record, names, tmp_path / "part", wanted=wanted)
    killed.__enter__()
    part = load_file(tmp_path / "part" / "model.safetensors")
    (tmp_path / "part" / "older").mkdir()
    (tmp_path / "part" / "model.safetensors.incomplete").write_bytes(b"rest")
    (tmp_path / "whole" / f"model.safetensors.{'0' * 64}.part").write_bytes(b"rest")
    with source.fetch(record, names, tmp_path / "part") as folder:
        assert sorted(path.name for path in folder.iterdir()) == sorted(names)
        assert read_weights(folder).keys() == remote.weights().keys()
    with source.fetch(record, names, tmp_path / "whole", wanted=wanted) as folder:
        there = {path.name for path in folder.iterdir() if not path.name.endswith(".header")}
        assert there == {"config.json", "model.safetensors"}
        found = load_file(folder / "model.safetensors")
        assert found.keys() == part.keys()
        assert all(torch.equal(found[name], part[name]) for name in part)


def test_a_partial_download_that_gets_on_is_not_given_up(
    source: HubSource,
    record: RevisionRecord,
    wanted: Callable[[str], bool],
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source.bytes_to_fetch(record, list(record.files), wanted=wanted, scratch=tmp_path / "here")
    hub.fail(f"GET /lfs/{source.repo}/", truncate=200_000, times=12)
    n_before = len(hub.requests(f"GET /lfs/{source.repo}/"))
    with (
        pytest.raises(SourceUnreachable, match="after 6 attempts"),
        source.fetch(record, list(record.files), tmp_path / "here", wanted=wanted),
    ):
        pass
    assert len(hub.requests(f"GET /lfs/{source.repo}/")) == n_before + 6
    assert (tmp_path / "here" / "model.safetensors.incomplete").stat().st_size >= 6 * 200_000
    monkeypatch.setattr(hub_module, "WORTHWHILE", 1_000_000)
    hub.fail(f"GET /lfs/{source.repo}/", truncate=200_000, times=6)
    with source.fetch(record, list(record.files), tmp_path / "here", wanted=wanted) as folder:
        assert all(map(wanted, load_file(folder / "model.safetensors")))
    assert sum(fault.times for fault in hub.faults) == 0


def test_a_partial_download_that_is_stopped_ends_at_its_next_block_and_keeps_what_came(
    source: HubSource, record: RevisionRecord, wanted: Callable[[str], bool], hub: Hub, tmp_path: Path
) -> None:
    names, growing = list(record.files), tmp_path / "here" / "model.safetensors.incomplete"
    n_bytes = source.bytes_to_fetch(record, names, wanted=wanted, scratch=tmp_path / "here")
    hub.bandwidth = n_bytes / 6
    stopped = threading.Event()

    def stop() -> None:
        while not growing.is_file() or growing.stat().st_size < n_bytes // 12:
            time.sleep(0.01)
        stopped.set()

    stopper = threading.Thread(target=stop)
    stopper.start()
    with (
        pytest.raises(SourceUnreachable, match=f"{source.repo} main: the download was stopped"),
        source.fetch(record, names, tmp_path / "here", wanted=wanted, stopped=stopped),
    ):
        pass
    stopper.join()
    assert not any(thread.name.startswith("download") for thread in threading.enumerate())
    n_there = growing.stat().st_size
    assert n_bytes // 12 <= n_there < n_bytes // 2
    hub.bandwidth = None
    n_before = hub.bytes_served(f"GET /lfs/{source.repo}/")
    with source.fetch(record, names, tmp_path / "here", wanted=wanted):
        pass
    assert hub.bytes_served(f"GET /lfs/{source.repo}/") - n_before < 1.02 * (n_bytes - n_there)


def test_a_plan_that_waits_ends_when_it_is_stopped(
    source: HubSource, record: RevisionRecord, wanted: Callable[[str], bool], hub: Hub, tmp_path: Path
) -> None:
    stopped = threading.Event()
    source.report = lambda line: stopped.set()
    hub.fail(f"GET /{source.repo}/resolve", status=503, headers={"Retry-After": "8"})
    with pytest.raises(SourceUnreachable, match="was stopped"):
        source.bytes_to_fetch(record, list(record.files), wanted=wanted, scratch=tmp_path, stopped=stopped)


def test_tensors_of_many_types_stand_where_their_type_allows(hub: Hub, tmp_path: Path) -> None:
    parts = {
        "model-00001-of-00002.safetensors": {"flags": torch.tensor([1, 0, 1], dtype=torch.uint8)},
        "model-00002-of-00002.safetensors": {
            "wide": torch.arange(5, dtype=torch.float32),
            "half": torch.arange(3).to(torch.bfloat16),
            "nothing": torch.empty(0, 4),
            "count": torch.tensor(7),
        },
    }
    (tmp_path / "mixed").mkdir()
    for name, tensors in parts.items():
        save_file(tensors, tmp_path / "mixed" / name)
    index = {"weight_map": {key: name for name, tensors in parts.items() for key in tensors}}
    (tmp_path / "mixed" / "model.safetensors.index.json").write_text(json.dumps(index))
    remote = publish(hub, "ranges/mixed", tmp_path / "mixed")
    remote.fetch(tmp_path, everything)
    found, there = load_file(tmp_path / "model.safetensors"), remote.weights()
    assert found.keys() == there.keys()
    assert all(found[key].dtype == there[key].dtype and torch.equal(found[key], there[key]) for key in there)
    assert all(value.data_ptr() % value.element_size() == 0 for value in found.values())


def test_weights_that_are_no_safetensors_are_refused(hub: Hub, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    remote = publish(hub, "ranges/bin", tmp_path)
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin of ranges/bin cannot .* only safetensors can"):
        remote.fetch(tmp_path, everything)


def test_nothing_wanted_is_said(remote: Remote, tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match="no weight is one of the needed"):
        remote.fetch(tmp_path, lambda _: False)


def test_tensors_of_two_shards_are_no_neighbours(hub: Hub, tmp_path: Path) -> None:
    parts = {"model-00001-of-00002.safetensors": "ab", "model-00002-of-00002.safetensors": "cd"}
    for number, (name, keys) in enumerate(parts.items()):
        save_file({key: torch.arange(4.0) + 10 * number + i for i, key in enumerate(keys)}, tmp_path / name)
    index = {"weight_map": {key: name for name, keys in parts.items() for key in keys}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    remote = publish(hub, "ranges/neighbours", tmp_path)
    told = remote.fetch(tmp_path / "here", lambda name: name in "ad")  # d begins at the byte where a ends
    assert told.n_ranges == 2
    found = load_file(tmp_path / "here" / "model.safetensors")
    assert {name: value.tolist() for name, value in found.items()} == {"a": [0, 1, 2, 3], "d": [11, 12, 13, 14]}


def with_header(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "does not begin with the header"),
        (b"\x02\0", "does not begin with the header"),
        (b"<html>404</html>", "does not begin with the header"),
        (b"\xff" * 8 + b"{}", "does not begin with the header"),
        (with_header(b"[]"), "is no table of tensors"),
        (with_header(b'{"w": {"a": 1}}'), "is no table of tensors"),
        (with_header(b'{"w": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}', b"1234"), "places w outside"),
        (with_header(b'{"w": {"dtype": "U8", "shape": [1], "data_offsets": [-1, 0]}}', b"1"), "places w outside"),
    ],
)
def test_a_file_of_something_else_is_damaged(content: bytes, said: str, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    remote = publish(hub, "ranges/damaged", tmp_path)
    with pytest.raises(DamagedWeights, match=said):
        remote.fetch(tmp_path / "here", everything)


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": {"w": "../a"}}', '{"weight_map": {"w": 1}}'])
def test_an_index_that_is_none_is_damaged(index: str, hub: Hub, tmp_path: Path) -> None:
    save_file({"v": torch.ones(2)}, tmp_path / "model-00001-of-00001.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(index)
    remote = publish(hub, "ranges/index", tmp_path)
    with pytest.raises(DamagedWeights, match=r"model\.safetensors\.index\.json"):
        remote.fetch(tmp_path / "here", everything)


def test_a_tensor_that_only_the_index_knows_is_damage(hub: Hub, tmp_path: Path) -> None:
    save_file({"v": torch.ones(2)}, tmp_path / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"w": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    remote = publish(hub, "ranges/lacking", tmp_path)
    with pytest.raises(DamagedWeights, match="lacks w, which the index says it holds"):
        remote.fetch(tmp_path / "here", everything)


def test_an_index_that_was_altered_on_the_way_is_damaged(hub: Hub, tmp_path: Path) -> None:
    save_file({"v": torch.ones(2), "w": torch.ones(2)}, tmp_path / "model-00001-of-00001.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"v": "model-00001-of-00001.safetensors"}}))
    remote = publish(hub, "ranges/altered", tmp_path)
    index.write_text(index.read_text().replace('"v"', '"w"'))  # the emulator serves it under the digest of before
    with pytest.raises(DamagedWeights, match="its digest differs"):
        remote.fetch(tmp_path / "here", everything)
