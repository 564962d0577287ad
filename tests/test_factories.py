"""Model factories: what may be named, what is said when it may not, and which changes make another model."""

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from replay.factories import read_factory
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


def test_another_process_reads_a_factory_by_its_text_and_refuses_a_changed_one(file: Path) -> None:
    factory = read_factory(f"{file}:make", prefix="net")
    sent = pickle.dumps(factory)
    assert pickle.loads(sent) == factory
    assert factory.prefix == "net."
    file.write_text(SOURCE.replace("WIDTH = 5", "WIDTH = 6"))
    with pytest.raises(InvalidInput, match="was changed since the work was planned"):
        pickle.loads(sent)


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("return 1", "return 2", True),
        ("WIDTH = 5", "WIDTH = 6", False),
        ("torch.relu", "torch.tanh", False),
        ("return Mlp()", "return nn.Sequential(Mlp())", False),
        ("return Mlp()", "return Mlp().double()", False),
        ("self.out = nn.Linear(WIDTH, 2)", "self.out = nn.Linear(WIDTH, 2, bias=False)", False),
    ],
)
def test_the_digest_changes_with_the_model_and_not_with_what_stands_beside_it(
    file: Path, old: str, new: str, same: bool
) -> None:
    digest = read_factory(f"{file}:make").digest
    assert old in SOURCE
    file.write_text(SOURCE.replace(old, new))
    assert (read_factory(f"{file}:make").digest == digest) is same


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
