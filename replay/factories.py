"""Model factories: ``module:function`` or ``file.py:function``, what builds the model that plain weights belong to."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import random
import re
import sys
from argparse import Namespace
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from store.errors import InvalidInput
from store.keys import content_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from torch import nn

__all__ = ["ModelFactory", "read_factory"]

EXPECTED = "write module:function, such as mypkg.models:make_mlp, or file.py:function"

# whose classes are known by their names: a new release of theirs makes no other model of the same weights
_LIBRARIES = ("torch", "transformers")
_DEPTH = 6  # how far values in values are looked at


@dataclass(frozen=True)
class ModelFactory:
    """What builds a model without arguments. Pickled it is its text: another process reads it anew."""

    text: str
    """``mypkg.models:make_mlp``, or with the absolute path of a file ``/runs/models.py:make_mlp``."""
    digest: str
    """Identity of the architecture, in the place of a ``config.json``; see `read_factory`."""
    prefix: str | None
    """What stands before the names of the model's weights in the files (``net.``); None where it shall be found."""
    make: Callable[[], nn.Module] = field(repr=False, compare=False)
    """What the text names."""

    def build(self) -> nn.Module:
        """Build the model on the CPU, with the random numbers of seed 0: what no file holds is always the same.

        So are those of `random` and `numpy.random`; all of them go on afterwards as if nothing had been built.

        Raises
        ------
        InvalidInput
            If what is called returns something else.
        """
        import torch

        states = random.getstate(), np.random.get_state()  # noqa: NPY002 (what a factory may draw from)
        try:
            with torch.random.fork_rng(devices=[]), _folder_first(self.text):
                for seed in (torch.manual_seed, random.seed, np.random.seed):
                    seed(0)
                model = self.make()
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
        if not isinstance(model, torch.nn.Module):
            raise InvalidInput(f"--model {self.text} returns a {type(model).__name__}: expected a torch.nn.Module")
        return model

    def skeleton(self) -> nn.Module:
        """Build the model on the meta device, or on the CPU where the factory looks at values; in eval mode."""
        import torch

        try:
            with torch.device("meta"):
                return self.build().eval()
        except InvalidInput:
            raise
        except Exception:  # noqa: BLE001 (whatever somebody else's code says of tensors without values)
            return self.build().eval()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the text: what a file defines cannot be sent to another process."""
        return _read_again, (self.text, self.prefix, self.digest)


def read_factory(text: str, *, prefix: str | None = None) -> ModelFactory:
    """Find what ``text`` names, call it once, and take the identity of the model.

    Modules are looked for in the current folder and then on ``sys.path``, as ``python -m`` does; the folder of a file
    stands first while the file runs. A class counts if it can be made without arguments.

    The digest is the sha256 of all that the numbers of a model are taken to depend on: the function, with what a
    ``functools.partial``, a decorator or a closure gives it; the printed structure of the model; names, shapes and
    types of its parameters and buffers; numbers, words, functions and settings that its modules hold as attributes; the
    source of every class in it that is neither torch's nor transformers' own; and the whole file of each of these
    classes, of the function, and of what ``text`` names. A change of a constant or of training code in such a file
    hence makes another model. What stands in files that these import, or is read while the model runs, is not seen.

    Parameters
    ----------
    text
        ``module:function`` or ``file.py:function``.
    prefix
        As `ModelFactory.prefix`, with or without the dot.

    Raises
    ------
    InvalidInput
        If it is not of this form, cannot be imported, has no such function, or the function needs arguments, raises, or
        returns something else than a ``torch.nn.Module`` or one with lazy layers.
    """
    from torch import nn

    absolute, module, name = _load(text)
    make = getattr(module, name, None)
    if make is None:
        offered = [other for other, value in vars(module).items() if callable(value) and not other.startswith("_")]
        near = difflib.get_close_matches(name, offered, n=3, cutoff=0.3) or offered[:3]
        raise InvalidInput(f"--model {text}: there is no {name!r}, but {', '.join(near) or 'nothing to call'}")
    if isinstance(make, nn.Module) or not callable(make):
        what = "a model that is built already" if isinstance(make, nn.Module) else f"a {type(make).__name__}"
        raise InvalidInput(f"--model {text} names {what}: expected a function or class that builds the model")
    needed = _needed_arguments(make)
    if needed:
        raise InvalidInput(
            f"--model {text} needs arguments ({', '.join(needed)}): write a function without, that gives them"
        )
    if prefix is not None and prefix and not prefix.endswith("."):
        prefix += "."
    factory = ModelFactory(absolute, "", prefix, make)
    try:
        model = factory.skeleton()
    except InvalidInput:
        raise
    except (Exception, SystemExit) as error:
        raise InvalidInput(f"--model {text} cannot build the model: {_told(error)}") from error
    return replace(factory, digest=_digest(model, factory))


def _read_again(text: str, prefix: str | None, digest: str) -> ModelFactory:
    factory = read_factory(text, prefix=prefix)
    if factory.digest != digest:
        raise InvalidInput(f"--model {text} was changed since the work was planned: run the same command again")
    return factory


def _load(text: str) -> tuple[str, ModuleType, str]:
    where, colon, name = text.strip().rpartition(":")
    if not colon or not where or not name.isidentifier():
        raise InvalidInput(f"--model {text!r} cannot be read: {EXPECTED}")
    file = Path(where).expanduser().resolve()
    is_file = where.endswith(".py") or "/" in where
    absolute = f"{file if is_file else where}:{name}"
    if is_file and not file.is_file():
        raise InvalidInput(f"--model {text}: there is no file {file}")
    try:
        with _folder_first(absolute):
            return absolute, _run_file(file) if is_file else importlib.import_module(where), name
    except ModuleNotFoundError as error:
        whose = "" if is_file or f"{where}.".startswith(f"{error.name}.") else ", which it imports"
        raise InvalidInput(f"--model {text} cannot be imported: no module named {error.name!r}{whose}") from error
    except (Exception, SystemExit) as error:
        raise InvalidInput(f"--model {text} cannot be imported: {_told(error)}") from error


def _run_file(file: Path) -> ModuleType:
    # under a name of its own, and in sys.modules: dataclasses and inspect look there for what a class is from
    name = _name_of(file)
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError("it does not end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _name_of(file: Path) -> str:
    return f"replay_factory_{sha256(str(file).encode()).hexdigest()[:16]}"


@contextmanager
def _folder_first(absolute: str) -> Iterator[None]:
    """Let imports look in the current folder first, or in that of the file."""
    where = absolute.rpartition(":")[0]
    folder = str(Path(where).parent if where.endswith(".py") else Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _needed_arguments(make: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(make).parameters.values()
    except (ValueError, TypeError):  # some builtins have none
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in optional]


def _digest(model: nn.Module, factory: ModelFactory) -> str:
    from torch.nn.parameter import is_lazy

    state = model.state_dict(keep_vars=True)
    lazy = [key for key, tensor in state.items() if is_lazy(tensor)]
    if lazy or not state:
        what = f"lazy layers ({lazy[0]}), whose shapes nobody knows: give their sizes" if lazy else "no weights"
        raise InvalidInput(f"--model {factory.text} builds a {type(model).__name__} with {what}")
    classes = {one for module in model.modules() for one in type(module).__mro__}
    own = {one for one in classes if not _is_library(one)}
    return content_key(
        "factory",
        make=[factory.text.rpartition(":")[2], _seen(factory.make)],
        prefix=factory.prefix,
        structure=re.sub(r" at 0x[0-9a-f]+", "", str(model)),
        state=[[key, list(tensor.shape), str(tensor.dtype)] for key, tensor in state.items()],
        held=[[name, _attributes(module)] for name, module in model.named_modules()],
        classes=sorted([one.__qualname__, _source(one)] for one in own),
        files=sorted(_files(factory, own)),
    )


def _attributes(module: nn.Module) -> list[Any]:
    """Return what a module holds beside parameters, buffers and modules, in the order of their names."""
    from torch import nn

    of_torch = vars(nn.Module())
    return [[name, _seen(value)] for name, value in sorted(vars(module).items()) if name not in of_torch]


def _seen(value: Any, depth: int = _DEPTH) -> Any:
    """Return what of a value tells numbers apart, the same in every process; of other objects no more than a class."""
    kind = type(value).__qualname__
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    deeper = partial(_seen, depth=depth - 1)
    if depth == 0:
        return kind
    if isinstance(value, tuple | list):
        return [kind, *map(deeper, value)]
    if isinstance(value, Mapping):
        return [kind, sorted(([str(key), deeper(held)] for key, held in value.items()), key=lambda pair: pair[0])]
    if isinstance(value, partial):
        return [kind, *map(deeper, (value.func, value.args, value.keywords))]
    if callable(value) and hasattr(value, "__qualname__"):
        return _seen_function(value, deeper)
    if hasattr(value, "to_diff_dict"):  # a configuration of transformers
        told = value.to_diff_dict()
        return [kind, deeper({key: told[key] for key in told if key != "transformers_version"})]
    if is_dataclass(value) or isinstance(value, SimpleNamespace | Namespace):
        return [kind, deeper(vars(value) if hasattr(value, "__dict__") else repr(value))]
    made = type(value)
    return [kind, "" if _is_library(made) else _source(made), str(value) if made.__module__ == "torch" else ""]


def _seen_function(made: Callable[..., Any], deeper: Callable[[Any], Any]) -> list[Any]:
    """Return the name of a function or class, and of those of one's own the source and what they were given."""
    if _is_library(made):
        return [made.__qualname__]
    given: list[Any] = [getattr(made, "__defaults__", None), getattr(made, "__kwdefaults__", None)]
    for cell in getattr(made, "__closure__", None) or ():
        try:
            given.append(cell.cell_contents)
        except ValueError:  # not filled yet
            given.append(None)
    # by its code, for the source of a decorated function is that of the one inside
    source = _source(getattr(made, "__code__", made))
    return [made.__qualname__, source, [deeper(one) for one in given], deeper(getattr(made, "__wrapped__", None))]


def _files(factory: ModelFactory, own: set[type]) -> set[str]:
    """Return the sha256 of the files that the function and the classes of a model stand in, and of the one named."""
    made: Any = factory.make
    while inner := getattr(made, "__wrapped__", None) or (made.func if isinstance(made, partial) else None):
        made = inner
    where = factory.text.rpartition(":")[0]
    modules = {one.__module__ for one in (*own, made) if isinstance(getattr(one, "__module__", None), str)}
    named = _name_of(Path(where)) if where.endswith(".py") else where
    files = {getattr(sys.modules.get(name), "__file__", None) for name in {named, *modules} if not _of_library(name)}
    return {sha256(Path(file).read_bytes()).hexdigest() for file in files if file and Path(file).is_file()}


def _is_library(made: Callable[..., Any]) -> bool:
    return _of_library(getattr(made, "__module__", None) or "builtins")


def _of_library(name: str) -> bool:
    return name.partition(".")[0] in (*_LIBRARIES, "builtins")


def _source(made: Any) -> str:
    try:
        return inspect.getsource(made)
    except (OSError, TypeError):  # defined in an interpreter, or not in Python
        return ""


def _told(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.msg} in line {error.lineno}"
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
