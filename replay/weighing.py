"""Statistics of a checkpoint's weights, and the uploads in a training history that hold the weights of another step."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from replay.threads import side_by_side
from store.errors import InvalidInput
from store.segments import Array

if TYPE_CHECKING:
    import torch
    import xarray as xr

__all__ = [
    "VERSION",
    "Neighbours",
    "UploadFault",
    "Weighing",
    "cosine",
    "distance",
    "find_faults_in_series",
    "find_upload_faults",
    "neighbours",
    "read_weighing",
    "weigh",
    "weighing_arrays",
]

VERSION = 1
"""Raised whenever the statistics of the same weights change: those of different versions cannot be compared."""

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Weighed = tuple[int, float, float, int, float, npt.NDArray[np.float32]]
Places = tuple[tuple[int, ...], ...]
"""Revisions by position, those that stand together in one tuple."""

_SAMPLE = 4096
_CHUNK = 1 << 18  # entries looked at at once: 1 MB of float32, which a core's cache holds
# Masks and rotary tables that older files hold. Stored weighings depend on this choice: it is no loader's business.
_BUFFERS = re.compile(
    r"(^|\.)((attn|attention|self|self_attn|self_attention)\.bias|masked_bias|inv_freq|cos_cached|sin_cached)$"
)
_BLOCK = re.compile(r"^(?:.*?\.)?\d+(?=\.)")

_FEWEST_ENTRIES = 16  # fewer may agree by chance, rounded as they are
_RETURN = 2  # how many times farther off than its neighbours are from each other
_NEARNESS = 0.1  # the distance to what it looks like, in parts of the departure
_REACH_OF_WEIGHTS = 2  # the departure, in typical distances between revisions
# Thousands of entries never come near another point by chance; a few scalars do, within their noise.
_REACH_OF_SCALARS = 15
_WINDOW = 6  # revisions to either side that tell what is typical: log grids turn linear, learning rates decay


@dataclass(frozen=True)
class Weighing:
    """Statistics of one checkpoint's weights by group: a block, or else the module that holds the tensor."""

    groups: tuple[str, ...]
    """Names of the groups, such as ``gpt_neox.layers.3`` or ``embed_out``."""
    entries: npt.NDArray[np.int64]
    """(group,) how many numbers the group holds."""
    norm: Floats
    """(group,) L2 norm; not finite where an entry is not."""
    row_norm: Floats
    """(group,) median L2 norm of the rows (along the last axis) of all matrices; NaN in groups without a matrix."""
    nonfinite: npt.NDArray[np.int64]
    """(group,) how many entries are NaN or infinite."""
    spacing: Floats
    """(group,) relative spacing of the coarsest floats that hold the entries: 2^-7 in bfloat16, 2^-10 in float16."""
    sample: npt.NDArray[np.float32]
    """(group, position) entries at fixed positions, each times √(how many it stands for); 0 beyond the last."""


@dataclass(frozen=True)
class UploadFault:
    """A revision that holds, as a whole or in some groups, the weights of another."""

    revision: int
    """Its position in the history."""
    step: int
    """The step it claims."""
    groups: tuple[str, ...]
    """The groups concerned; empty for a series of scalars."""
    like: int
    """Position of the revision that it looks like."""
    exact: bool
    """Whether it is equal to that one in all groups concerned."""
    text: str
    """One line for a person."""


@dataclass(frozen=True)
class Neighbours:
    """Norms of a run's weights, and how far each revision is from others."""

    norm: Floats
    """(revision, group) L2 norm."""
    row_norm: Floats
    """(revision, group) median L2 norm of the rows."""
    to_previous: Floats
    """(revision, group) estimated L2 distance to the revision before; NaN at the first."""
    to_next: Floats
    """(revision, group) estimated L2 distance to the revision after; NaN at the last."""
    to_final: Floats
    """(revision, group) estimated L2 distance to the last revision."""


def weigh(tensors: Mapping[str, "torch.Tensor"]) -> Weighing:
    """Take the statistics of one checkpoint's floating-point weights; old masks and rotary tables are left out.

    Rows are summed in float32 (in float64 if that is their type), everything else in float64: norms hold to 1e-6. All
    is done in one order and from memory of one layout, so that the result is the same to the last bit with any number
    of threads. A tensor of a group holds a share of the sample that goes with the root of its size; its positions, one
    in each of equal stretches, follow from the group's name and the shapes alone.

    Parameters
    ----------
    tensors
        A checkpoint's tensors by name, of any float type and on any device, in any order.

    Raises
    ------
    InvalidInput
        If there is no floating-point weight among them.
    """
    import torch

    members: dict[str, list[str]] = {}
    for name in sorted(tensors, key=_natural):
        tensor = tensors[name]
        if tensor.is_floating_point() and tensor.numel() and not _BUFFERS.search(name):
            block = _BLOCK.match(name)
            members.setdefault(block[0] if block else name.rpartition(".")[0] or name, []).append(name)
    if not members:
        raise InvalidInput(f"no floating-point weights among {len(tensors)} tensors; expected those of a checkpoint")
    with side_by_side(torch.get_num_threads()) as pool:
        weighed = list(
            pool.map(_weigh_group, members, [{name: tensors[name] for name in names} for names in members.values()])
        )
    width = max(len(sample) for *_, sample in weighed)
    entries, norm, row_norm, nonfinite, spacing, samples = zip(*weighed, strict=True)
    return Weighing(
        groups=tuple(members),
        entries=np.array(entries, np.int64),
        norm=np.array(norm, np.float64),
        row_norm=np.array(row_norm, np.float64),
        nonfinite=np.array(nonfinite, np.int64),
        spacing=np.array(spacing, np.float64),
        sample=np.stack([np.pad(sample, (0, width - len(sample))) for sample in samples]),
    )


def weighing_arrays(weighing: Weighing) -> dict[str, Array]:
    """Return the statistics as the arrays of a segment, over (group,) and (group, position)."""
    arrays = {"group": Array(np.array(weighing.groups, object), ("group",))}
    for field in fields(weighing)[1:]:
        values = getattr(weighing, field.name)
        arrays[field.name] = Array(values, ("group", "position")[: values.ndim])
    return arrays


def read_weighing(dataset: "xr.Dataset") -> Weighing:
    """Return the statistics that a segment holds."""
    arrays = {field.name: dataset[field.name].to_numpy() for field in fields(Weighing)[1:]}
    return Weighing(groups=tuple(map(str, dataset["group"].to_numpy())), **arrays)


def distance(a: Weighing, b: Weighing, *, relative: bool = False) -> Floats:
    """Estimate the L2 distance between two checkpoints of one run, group by group, from their samples.

    Parameters
    ----------
    a, b
        Two checkpoints with the same groups.
    relative
        Divide by √(‖a‖² + ‖b‖²): 0 is equal, 1 orthogonal, √2 opposite.

    Returns
    -------
    ndarray
        (group,); exact in groups of 4,096 entries or fewer and for equal groups. In larger ones the relative standard
        error is √(κ / 4096) / 2, where κ + 1 is the kurtosis of the changes: 1.1 % when they are normally distributed,
        1 to 3 % measured on a trained GPT-NeoX. NaN where an entry is not finite.

    Raises
    ------
    InvalidInput
        If the two have other groups or sizes.
    """
    _check_comparable(a, b)
    finite = np.isfinite(a.norm) & np.isfinite(b.norm)
    far = np.full(len(a.groups), np.nan)
    difference = a.sample[finite].astype(np.float64) - b.sample[finite]
    far[finite] = np.sqrt(np.einsum("gn,gn->g", difference, difference))
    if relative:
        size = np.hypot(a.norm, b.norm)
        far /= np.where(size > 0, size, 1)  # two groups of zeros are equal
    return far


def cosine(a: Weighing, b: Weighing) -> Floats:
    """Estimate the cosine between two checkpoints of one run, (‖a‖² + ‖b‖² - ‖a - b‖²) / (2 ‖a‖ ‖b‖).

    Norms are exact, only the distance is estimated: the error goes with 1 - cosine and vanishes for near checkpoints.

    Parameters
    ----------
    a, b
        Two checkpoints with the same groups.

    Returns
    -------
    ndarray
        (group,) from -1 to 1; NaN where a group is all zero or an entry is not finite.

    Raises
    ------
    InvalidInput
        If the two have other groups or sizes.
    """
    far = distance(a, b)
    defined = np.isfinite(far) & (a.norm * b.norm > 0)
    p, q = a.norm[defined], b.norm[defined]
    angle = np.full(len(far), np.nan)
    angle[defined] = np.clip((p**2 + q**2 - far[defined] ** 2) / (2 * p * q), -1, 1)
    return angle


def neighbours(steps: Sequence[int], weighings: Sequence[Weighing]) -> Neighbours:
    """Tabulate norms and distances of a run's revisions.

    Parameters
    ----------
    steps
        (revision,) training steps, increasing.
    weighings
        (revision,) the checkpoints at these steps.

    Raises
    ------
    InvalidInput
        If steps do not increase, or revisions differ in number, groups or sizes.
    """
    _check_history(steps, weighings)
    shape = len(weighings), len(weighings[0].groups)
    hops = np.array([distance(a, b) for a, b in pairwise(weighings)]).reshape(-1, shape[1])
    unknown = np.full((1, shape[1]), np.nan)
    return Neighbours(
        norm=np.array([weighing.norm for weighing in weighings]),
        row_norm=np.array([weighing.row_norm for weighing in weighings]),
        to_previous=np.concatenate([unknown, hops]),
        to_next=np.concatenate([hops, unknown]),
        to_final=np.array([distance(weighing, weighings[-1]) for weighing in weighings]),
    )


def find_upload_faults(steps: Sequence[int], weighings: Sequence[Weighing]) -> list[UploadFault]:
    """Find the revisions of one run that hold the weights of another step, as a whole or in some groups.

    Weights that come back bit for bit after others stood between them cannot be training. Of the places where they
    stand (each one revision or several in a row) that one is right which makes the path through the history shortest;
    the others are faults. Beyond that, a revision is a fault if it is more than twice as far from both neighbours as
    these are from each other, and as is usual there, and at least ten times nearer to a revision elsewhere. A change
    that stays, and an excursion to weights found nowhere else, are training.

    Groups of fewer than 16 entries, and entries that are not finite, say nothing; nor do differences of the size of
    rounding. A copy in the direct neighbour of what it copies is not told from weights that did not move.

    Parameters
    ----------
    steps
        (revision,) training steps, increasing.
    weighings
        (revision,) the checkpoints at these steps.

    Returns
    -------
    list
        One a faulty revision, by step.

    Raises
    ------
    InvalidInput
        If steps do not increase, or revisions differ in number, groups or sizes.
    """
    _check_history(steps, weighings)
    norms = np.array([weighing.norm for weighing in weighings]).T
    floors = np.median([weighing.spacing for weighing in weighings], axis=0) * np.nan_to_num(norms, posinf=0).max(1)
    names = weighings[0].groups
    distances = np.stack([_sample_distances(weighings, group) for group in range(len(names))])
    distances[weighings[0].entries < _FEWEST_ENTRIES] = np.nan
    faulty = _find_copies(distances, norms, floors)
    found = []
    for group, D in enumerate(distances):
        faulty[group] = _find_excursions(D, faulty[group], reach=_REACH_OF_WEIGHTS, floor=floors[group])
        found += [(i, group, *_likeness(D, i, faulty[group])) for i in np.flatnonzero(faulty[group]).tolist()]
    usable = int(np.sum(weighings[0].entries >= _FEWEST_ENTRIES))
    faults = []
    for i in sorted({i for i, *_ in found}):
        groups = tuple(names[group] for at, group, _, _ in found if at == i)
        votes = Counter((like, exact) for at, _, like, exact in found if at == i)
        like = max(votes, key=lambda vote: (votes[vote], vote[1], vote[0]))[0]
        exact = set(votes) == {(like, True)}
        what = "its weights" if len(groups) == usable else f"{len(groups)} of {usable} groups ({_listing(groups)})"
        faults.append(_fault(steps, i, like, exact, groups, what))
    return faults


def find_faults_in_series(
    steps: Sequence[int], values: npt.NDArray[np.floating[Any]] | Sequence[Sequence[float]]
) -> list[UploadFault]:
    """Find the revisions of one run that hold the weights of another step, from scalars alone.

    The rule is that of ``find_upload_faults`` without its first part: equal scalars are no proof. Each feature is
    measured in its own unit, the median over the history of the smallest of the three differences among successive
    values (of which one fault leaves one) or the smallest difference at all, if greater; a departure is 15 units or
    more. An excursion that happens to land on another value in every feature is not told from a fault: give several.

    Parameters
    ----------
    steps
        (revision,) training steps, increasing.
    values
        (revision, feature) such as a norm, or a cosine to the first revision; NaN where unknown.

    Returns
    -------
    list
        One a faulty revision, by step, without groups.

    Raises
    ------
    InvalidInput
        If steps do not increase, or values have another shape.
    """
    table = np.asarray(values, np.float64)
    if table.ndim != 2 or len(table) != len(steps):
        raise InvalidInput(f"values have the shape {table.shape}; expected (revision, feature) for {len(steps)} steps")
    _check_steps(steps)
    D = _scalar_distances(table)
    faulty = _find_excursions(D, np.zeros(len(steps), bool), reach=_REACH_OF_SCALARS, floor=_REACH_OF_SCALARS)
    return [_fault(steps, i, *_likeness(D, i, faulty), (), "its values") for i in np.flatnonzero(faulty).tolist()]


def _natural(name: str) -> list[tuple[bool, int, str]]:
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in name.split(".")]


def _weigh_group(group: str, tensors: Mapping[str, "torch.Tensor"]) -> Weighed:
    """Return entries, norm, row norm, non-finite entries, spacing and sample of a group."""
    import torch

    shapes = ";".join(f"{name}{list(tensor.shape)}" for name, tensor in tensors.items())
    shares = _shares([tensor.numel() for tensor in tensors.values()])
    # the stream of a hash is the same for ever; that of a random generator may change with its library
    stream = hashlib.shake_256(f"{group}|{shapes}".encode()).digest(4 * sum(shares))
    jitter = np.split(np.frombuffer(stream, "<u4") / 2.0**32, np.cumsum(shares)[:-1])
    squares, row_norms, sample, scales, nonfinite = [], [], [], [], 0
    for tensor, offset in zip(tensors.values(), jitter, strict=True):
        rows = tensor.detach().reshape(-1, tensor.shape[-1] if tensor.dim() else 1)
        row_squares, n_bad = _row_squares(rows)
        squares.append(row_squares.sum())
        row_norms += [np.sqrt(row_squares)] if tensor.dim() > 1 else []
        nonfinite += n_bad
        each = tensor.numel() / len(offset)
        flat = np.minimum((np.arange(len(offset)) + offset) * each, tensor.numel() - 1).astype(np.int64)
        row, column = np.divmod(flat, rows.shape[1])
        sample.append(rows[torch.from_numpy(row), torch.from_numpy(column)].cpu().double().numpy())
        scales.append(np.full(len(offset), np.sqrt(each)))
    entries, values = sum(tensor.numel() for tensor in tensors.values()), np.concatenate(sample)
    row_norm = float(np.median(np.concatenate(row_norms))) if row_norms else np.nan
    with np.errstate(over="ignore"):
        scaled = (values * np.concatenate(scales)).astype(np.float32)
    return entries, float(np.sqrt(sum(squares))), row_norm, nonfinite, _spacing(values), scaled


def _shares(sizes: list[int]) -> list[int]:
    """Deal the sample over the tensors of a group, smallest first; all entries if they are few enough.

    In proportion to the size a norm's weights, few but large, would hardly be drawn.
    """
    shares, left, roots = [0] * len(sizes), _SAMPLE, float(np.sqrt(sizes).sum())
    for i in np.argsort(sizes, kind="stable"):
        root = float(np.sqrt(sizes[i]))
        shares[i] = min(sizes[i], max(1, round(left * min(1.0, root / roots))))
        left, roots = left - shares[i], max(roots - root, root)
    return shares


def _row_squares(rows: "torch.Tensor") -> tuple[Floats, int]:
    """Return the sum of squares of each row and the number of entries that are not finite."""
    import torch

    n_rows, length = rows.shape
    squares, n_bad = np.zeros(n_rows), 0
    width = min(length, _CHUNK)
    height = min(n_rows, max(1, _CHUNK // width))
    # The order in which numpy sums goes with where the numbers lie: everything is copied to one place first.
    kind = torch.float64 if rows.dtype == torch.float64 else torch.float32
    place = torch.empty(height * width, dtype=kind)
    for top in range(0, n_rows, height):
        for left in range(0, length, width):
            part = rows[top : top + height, left : left + width]
            block = place[: part.numel()].view(part.shape).copy_(part).numpy()
            with np.errstate(over="ignore", invalid="ignore"):
                sums = np.einsum("ij,ij->i", block, block)
            squares[top : top + height] += sums
            if not np.isfinite(sums).all():
                n_bad += int(np.count_nonzero(~np.isfinite(block)))
    return squares, n_bad


def _spacing(values: Floats) -> float:
    """Return the relative spacing of the coarsest floats that hold the values; files may be wider than training was."""
    import torch

    exact = torch.from_numpy(values)
    for kind in (torch.bfloat16, torch.float16, torch.float32):
        if torch.equal(exact.to(kind).double(), exact):
            return torch.finfo(kind).eps
    return torch.finfo(torch.float64).eps


def _check_comparable(a: Weighing, b: Weighing) -> None:
    if a.groups != b.groups or not np.array_equal(a.entries, b.entries):
        odd = sorted(set(zip(a.groups, a.entries.tolist(), strict=True)) ^ set(zip(b.groups, b.entries, strict=True)))
        raise InvalidInput(
            f"checkpoints differ in groups or sizes ({_listing([name for name, _ in odd])}); expected those of one run"
        )


def _check_steps(steps: Sequence[int]) -> None:
    for before, after in pairwise(steps):
        if after <= before:
            raise InvalidInput(f"step {after} follows step {before}; expected increasing steps: sort the revisions")


def _check_history(steps: Sequence[int], weighings: Sequence[Weighing]) -> None:
    if len(steps) != len(weighings) or not weighings:
        raise InvalidInput(
            f"{len(steps)} steps for {len(weighings)} weighings; expected one step each, and at least one"
        )
    _check_steps(steps)
    for step, weighing in zip(steps, weighings, strict=True):
        try:
            _check_comparable(weighings[0], weighing)
        except InvalidInput as error:
            raise InvalidInput(f"step {step}: {error}") from error


def _sample_distances(weighings: Sequence[Weighing], group: int) -> Floats:
    """Return the (revision, revision) distances of a group: 0 only where equal bit for bit, NaN where not finite."""
    contents: dict[bytes, int] = {}
    same = np.array(
        [
            contents.setdefault(weighing.norm[group].tobytes() + weighing.sample[group].tobytes(), i)
            for i, weighing in enumerate(weighings)
        ]
    )
    norm = np.array([weighing.norm[group] for weighing in weighings])
    X = np.array([weighing.sample[group] for weighing in weighings], np.float64)
    X[~np.isfinite(norm)] = 0
    X -= X.mean(axis=0)  # what all share would drown small differences
    square = np.einsum("in,in->i", X, X)
    D: Floats = np.sqrt(np.maximum(square[:, None] + square - 2 * X @ X.T, np.finfo(float).tiny))
    D[same[:, None] == same] = 0
    D[~np.isfinite(norm)] = np.nan
    D[:, ~np.isfinite(norm)] = np.nan
    return D


def _scalar_distances(table: Floats) -> Floats:
    """Return the (revision, revision) distances: the greatest difference in a feature known in both, in its unit."""
    D = np.full((len(table), len(table)), np.nan)
    for feature in table.T:
        known = feature[np.isfinite(feature)]
        if len(np.unique(known)) < 2:
            continue
        corners = np.lib.stride_tricks.sliding_window_view(known, min(3, len(known)))
        sides = np.abs(corners - np.roll(corners, 1, axis=1)).min(axis=1)
        unit = max(float(np.median(sides)), float(np.diff(np.unique(known)).min()))
        D = np.fmax(D, np.abs(feature[:, None] - feature) / unit)
    D[~np.isfinite(D)] = np.nan
    return D


def _find_copies(distances: Floats, norms: Floats, floors: Floats) -> Flags:
    """Flag, by (group, revision), equal weights with others between them, all but where the path needs them."""
    faulty = np.zeros(norms.shape, bool)
    while True:
        copies = _copied_places(distances, faulty, floors)
        suspect = faulty.copy()
        for places, groups in copies.items():
            suspect[np.ix_(groups, [i for place in places for i in place])] = True
        worst, wrong = 0.0, np.zeros_like(faulty)
        for places, groups in copies.items():
            costs = np.array([_detours(distances[group], places, faulty[group], suspect[group]) for group in groups])
            # all groups that agree in where the copies are decide together; of equals the later is right
            total = (costs / np.maximum(norms[groups, places[0][:1]], np.finfo(float).tiny)[:, None]).sum(axis=0)
            costs[:, len(places) - 1 - int(np.argmin(total[::-1]))] = 0
            claims = np.argwhere(costs > 0)
            # the widest astray go first: what stands between them may then follow on without a break
            if len(claims) and total.max() > worst:
                worst, wrong = total.max(), np.zeros_like(faulty)
                for row, place in claims:
                    wrong[groups[row], list(places[place])] = True
        if not wrong.any():
            return faulty
        faulty |= wrong


def _copied_places(distances: Floats, faulty: Flags, floors: Floats) -> dict[Places, list[int]]:
    """Return the places of each content that stands in several, and the groups in which it does."""
    copies: dict[Places, list[int]] = {}
    for group, D in enumerate(distances):
        order = np.flatnonzero(np.isfinite(D).any(axis=1) & ~faulty[group])
        for i in order:
            far = D[i, order]
            ends = np.flatnonzero(far == 0)
            gaps = [k for k in np.flatnonzero(np.diff(ends) > 1) if _is_left(far, ends[k], ends[k + 1], floors[group])]
            parts = np.split(order[ends], np.array(gaps, int) + 1)
            if parts[0][0] == i and len(parts) > 1:
                copies.setdefault(tuple(tuple(part.tolist()) for part in parts), []).append(group)
    return copies


def _is_left(far: Floats, start: int, stop: int, floor: float) -> bool:
    """Tell whether weights were left between two revisions that have them, by more than rounding.

    One revision between them that is off by far more than others before and after is a spike in weights that were slow.
    """
    others = np.flatnonzero(far)
    sides = others[others < start], others[others > stop]
    spike = stop - start == 2 and all(far[side].min() < _NEARNESS * far[start + 1] for side in sides if len(side))
    return bool(np.max(far[start:stop]) > floor and not spike)


def _detours(D: Floats, places: Places, faulty: Flags, suspect: Flags) -> list[float]:
    """Return by how much each place lengthens the path through the others, if possible those beyond suspicion."""
    other = np.isfinite(D).any(axis=1) & ~faulty & (D[places[0][0]] != 0)
    others = np.flatnonzero(other & ~suspect if np.any(other & ~suspect) else other)
    detours = []
    for place in places:
        before, after = others[others < place[0]][-1:], others[others > place[-1]][:1]
        legs = D[place[0], [*before, *after]].sum()
        detours.append(float(legs - D[np.ix_(before, after)].sum()))
    return detours


def _find_excursions(D: Floats, faulty: Flags, *, reach: float, floor: float) -> Flags:
    """Flag revisions that leave the trend, come back at the next step and are near another, the surest first."""
    faulty = faulty.copy()
    while True:
        places = _standing(D, faulty)
        if len(places) < 3:
            return faulty
        first, last = np.array([place[0] for place in places]), np.array([place[-1] for place in places])
        a, x, b = last[:-2], first[1:-1], first[2:]
        leg, back = np.fmin(D[a, x], D[x, b]), D[a, b]
        # one fault leaves a triangle of three successive revisions one side that is usual
        sides = np.fmin(leg, np.where(back > 0, back, np.inf))
        padded = np.pad(sides, _WINDOW, constant_values=np.nan)
        medians = np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, _WINDOW + 1), axis=1)
        usual = np.fmax(medians[:-_WINDOW], medians[_WINDOW:])  # a quiet stretch may end here
        away = np.flatnonzero((leg > _RETURN * back) & (leg > reach * usual) & (leg > floor))
        best: tuple[bool, bool, float, int] | None = None
        for k in away.tolist():
            far = D[x[k]].copy()
            far[list(places[k + 1])] = np.nan
            for i in np.flatnonzero(far <= _NEARNESS * leg[k]).tolist():
                claim = (far[i] == 0, i > x[k], -float(far[i] / leg[k]), k)
                best = claim if best is None else max(best, claim)
        if best is None:
            return faulty
        faulty[list(places[best[-1] + 1])] = True


def _standing(D: Floats, faulty: Flags) -> Places:
    """Return the revisions that are known and not faulty, equal ones that follow each other together."""
    order = np.flatnonzero(np.isfinite(D).any(axis=1) & ~faulty)
    parts = np.split(order, np.flatnonzero(D[order[:-1], order[1:]] != 0) + 1)
    return tuple(tuple(part.tolist()) for part in parts)


def _likeness(D: Floats, i: int, faulty: Flags) -> tuple[int, bool]:
    """Return which revision a faulty one looks like, rather one that is right, and whether it is equal."""
    own = next(place for place in _standing(D, np.zeros_like(faulty)) if i in place)
    far = D[i].copy()
    far[list(own)] = np.nan
    right = np.flatnonzero(~faulty)
    legs = D[i, [*right[(right < i) & (D[i, right] > 0)][-1:], *right[(right > i) & (D[i, right] > 0)][:1]]]
    near = np.flatnonzero(far <= max(_NEARNESS * np.min(legs, initial=np.inf), np.nanmin(far)))
    like = min(near.tolist(), key=lambda m: (faulty[m], far[m], -m))
    return like, bool(far[like] == 0)


def _fault(steps: Sequence[int], i: int, like: int, exact: bool, groups: tuple[str, ...], what: str) -> UploadFault:
    how = f"{what} are equal to" if exact else f"off the trend, {what} are nearest to"
    when = "a later" if like > i else "an earlier"
    text = f"step {steps[i]}: {how} those of {when} step, {steps[like]}: an upload fault, not training"
    return UploadFault(int(i), int(steps[i]), groups, int(like), exact, text)


def _listing(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
