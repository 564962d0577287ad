"""Model factories: what may be named, what is said when it may not, and which changes make another model."""

import os
import pickle
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from replay.factories import _digest, read_factory
from store.errors import InvalidInput

SOURCE = """
import torch
from torch import nn
WIDTH = 5

class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(4, WIDTH)
        self.out = nn.Linear(WIDTH, 2)

    def forward(self, x):
        return self.out(torch.relu(self.fc1(x)))

def make():
    return Mlp()

def make_random():
    model = Mlp()
    model.register_buffer("angles", torch.randn(3), persistent=False)
    return model

def make_from_values():
    return nn.Linear(int(torch.full((), 3.0).item()), 2)

def train():
    return 1

built = Mlp()
number = 3

def with_width(width, *, depth): ...
def raising(): raise ValueError("no GPU here\\nand more")
def leaving(): raise SystemExit(3)
def table(): return {}
def lazy(): return nn.LazyLinear(3)
def nothing(): return nn.ReLU()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "networks.py"
    path.write_text(SOURCE)
    return path


def test_a_file_and_a_module_of_the_current_folder_name_the_same_model(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file.parent / "networks_of_a_test.py").write_text(SOURCE)
    monkeypatch.chdir(file.parent)
    by_file, by_module = read_factory("networks.py:make"), read_factory("networks_of_a_test:make")
    assert by_file.text == f"{file}:make"
    assert by_module.text == "networks_of_a_test:make"
    assert by_file.digest == by_module.digest
    assert [name for name, _ in by_module.build().named_parameters()] == [
        "fc1.weight",
        "fc1.bias",
        "out.weight",
        "out.bias",
    ]


def test_a_class_without_arguments_is_a_factory(file: Path) -> None:
    assert type(read_factory(f"{file}:Mlp").build()).__name__ == "Mlp"


def test_a_skeleton_takes_no_memory_unless_the_factory_looks_at_values(file: Path) -> None:
    skeletons = [read_factory(f"{file}:{name}").skeleton() for name in ("make", "make_from_values")]
    assert [next(model.parameters()).device.type for model in skeletons] == ["meta", "cpu"]
    assert not any(model.training for model in skeletons)


def test_what_no_file_holds_is_the_same_in_every_build_and_takes_no_random_number(file: Path) -> None:
    factory = read_factory(f"{file}:make_random")
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = factory.build()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    second = factory.build()
    assert torch.equal(first.get_buffer("angles"), second.get_buffer("angles"))


def test_a_factory_that_draws_by_numpy_or_python_builds_the_same_and_takes_none(tmp_path: Path) -> None:
    (tmp_path / "drawn.py").write_text(
        "import random\nimport numpy as np\nimport torch\nfrom torch import nn\n"
        "def make():\n    model = nn.Linear(1, 1)\n"
        "    drawn = torch.tensor([random.random(), np.random.rand()])\n"
        "    model.register_buffer('drawn', drawn, persistent=False)\n    return model\n"
    )
    factory = read_factory(f"{tmp_path / 'drawn.py'}:make")
    found = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        found.append(factory.build().get_buffer("drawn"))
        assert random.random() == random.Random(seed).random()
        assert np.random.rand() == np.random.RandomState(seed).rand()  # noqa: NPY002
    wanted = [random.Random(0).random(), np.random.RandomState(0).rand()]
    assert all(torch.equal(each, torch.tensor(wanted)) for each in found)


def test_another_process_reads_a_factory_by_its_text_and_refuses_a_changed_one(file: Path) -> None:
    factory = read_factory(f"{file}:make", prefix="net")
    sent = pickle.dumps(factory)
    assert pickle.loads(sent) == factory
    assert factory.prefix == "net."
    file.write_text(SOURCE.replace("WIDTH = 5", "WIDTH = 6"))
    with pytest.raises(InvalidInput, match="was changed since the work was planned"):
        pickle.loads(sent)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("WIDTH = 5", "WIDTH = 6"),
        ("torch.relu", "torch.tanh"),
        ("return Mlp()", "return nn.Sequential(Mlp())"),
        ("return Mlp()", "return Mlp().double()"),
        ("self.out = nn.Linear(WIDTH, 2)", "self.out = nn.Linear(WIDTH, 2, bias=False)"),
    ],
)
def test_the_digest_changes_with_the_model_and_its_file(file: Path, old: str, new: str) -> None:
    digest = read_factory(f"{file}:make").digest
    assert old in SOURCE
    file.write_text(SOURCE.replace(old, new))
    assert read_factory(f"{file}:make").digest != digest


IMPORTED = """
import functools
from types import SimpleNamespace
import torch
from torch import nn
from torch.nn import functional as F

ACT = torch.relu

def given(act, heads=2, slope=0.1):
    model = nn.Sequential(nn.Linear(4, 4))
    model.act, model.config, model.later = act, SimpleNamespace(slope=slope), functools.partial(act)
    model.append(nn.TransformerEncoderLayer(4, heads, 8, activation=F.relu))
    return model

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return ACT(self.inner(x))

def twice(make):
    @functools.wraps(make)
    def made():
        return nn.Sequential(make(), make())
    return made
"""

CHOSEN = """
import functools
import torch
import parts_of_digests
make = functools.partial(parts_of_digests.given, torch.relu, heads=2)
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "functools.partial(parts_of_digests.given, torch.relu",
            "functools.partial(parts_of_digests.given, torch.tanh",
        ),
        ("heads=2", "heads=4"),
        ("heads=2", "slope=0.2"),
        ("functools.partial(parts_of_digests.given, torch.relu, heads=2)", "parts_of_digests.Own"),
    ],
)
def test_what_a_factory_is_given_makes_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    # the structure that torch prints is the same for each pair, and so are the shapes
    (tmp_path / "parts_of_digests.py").write_text(IMPORTED)
    monkeypatch.delitem(sys.modules, "parts_of_digests", raising=False)
    assert old in CHOSEN
    digests = set()
    for source in (CHOSEN, CHOSEN.replace(old, new)):
        (tmp_path / "chosen.py").write_text(source)
        factory = read_factory(f"{tmp_path / 'chosen.py'}:make")
        # only what is held and given tells them apart
        monkeypatch.setattr("replay.factories._files", lambda *_: set())
        digests.add(replace(factory, digest=_digest(factory.build(), factory)).digest)
    assert len(digests) == 2


@pytest.mark.parametrize("kind", ["file", "module"])
def test_a_changed_global_makes_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path = tmp_path / "globals_of_a_test.py"
    monkeypatch.chdir(tmp_path)
    digests = set()
    for source in (IMPORTED, IMPORTED.replace("ACT = torch.relu", "ACT = torch.sigmoid")):
        path.write_text(source)
        monkeypatch.delitem(sys.modules, "globals_of_a_test", raising=False)
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        digests.add(read_factory(f"{path if kind == 'file' else 'globals_of_a_test'}:Own").digest)
    assert len(digests) == 2


def test_a_global_of_a_module_that_a_class_comes_from_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "whole.py").write_text("import globals_of_classes\ndef make(): return globals_of_classes.Own()\n")
    digests = set()
    for source in (IMPORTED, IMPORTED.replace("ACT = torch.relu", "ACT = torch.sigmoid")):
        (tmp_path / "globals_of_classes.py").write_text(source)
        monkeypatch.delitem(sys.modules, "globals_of_classes", raising=False)
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        digests.add(read_factory(f"{tmp_path / 'whole.py'}:make").digest)
    assert len(digests) == 2


def test_another_process_finds_the_same_digest(tmp_path: Path) -> None:
    (tmp_path / "parts_of_processes.py").write_text(IMPORTED)
    (tmp_path / "chosen.py").write_text(CHOSEN.replace("parts_of_digests", "parts_of_processes"))
    text = f"{tmp_path / 'chosen.py'}:make"
    code = f"from replay.factories import read_factory; print(read_factory({text!r}).digest)"
    found = [
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, check=True, capture_output=True
        )
        for seed in ("1", "2")
    ]
    digest = read_factory(text).digest
    assert [result.stdout.decode().split() for result in found] == [[digest], [digest]]


def test_a_prefix_is_part_of_what_a_model_is(file: Path) -> None:
    digests = {read_factory(f"{file}:make", prefix=prefix).digest for prefix in (None, "", "net.", "module.")}
    assert len(digests) == 4


def test_a_file_may_import_what_stands_beside_it(tmp_path: Path) -> None:
    (tmp_path / "parts_of_a_test.py").write_text("from torch import nn\nhead = nn.Linear\n")
    (tmp_path / "whole.py").write_text("def make():\n    from parts_of_a_test import head\n    return head(2, 3)\n")
    assert isinstance(read_factory(f"{tmp_path / 'whole.py'}:make").build(), nn.Linear)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("make", "cannot be read: write module:function, such as mypkg.models:make_mlp, or file.py:function"),
        ("{file}:", "cannot be read"),
        ("{file}:mak", "there is no 'mak', but make"),
        ("{folder}/none.py:make", "there is no file .*none.py"),
        ("no_such_package.models:make", "no module named 'no_such_package'$"),
        ("{file}:with_width", r"needs arguments \(width, depth\)"),
        ("{file}:raising", "cannot build the model: ValueError: no GPU here$"),
        ("{file}:leaving", "cannot build the model: SystemExit: 3"),
        ("{file}:table", "returns a dict: expected a torch.nn.Module"),
        ("{file}:built", "a model that is built already"),
        ("{file}:number", "names a int: expected a function or class"),
        ("{file}:lazy", r"lazy layers \(weight\), whose shapes nobody knows"),
        ("{file}:nothing", "builds a ReLU with no weights"),
    ],
)
def test_what_is_no_factory_is_refused_in_one_line(file: Path, text: str, line: str) -> None:
    with pytest.raises(InvalidInput, match=line) as caught:
        read_factory(text.format(file=file, folder=file.parent))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("import no_such_library\n", "no module named 'no_such_library'"),
        ("x = 1\ndef f(:\n", "invalid syntax in line 2"),
        ("raise RuntimeError('needs a key')\n", "RuntimeError: needs a key"),
        ("import sys\nsys.exit('usage')\n", "SystemExit: usage"),
    ],
)
def test_a_file_that_cannot_be_imported_says_why(tmp_path: Path, source: str, line: str) -> None:
    (tmp_path / "broken.py").write_text(source)
    with pytest.raises(InvalidInput, match=f"cannot be imported: {line}"):
        read_factory(f"{tmp_path / 'broken.py'}:f")
