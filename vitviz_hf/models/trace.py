"""What one forward pass on one image executed: linears in order, shapes, and where the rows of tensors lie."""

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Grid = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Told:
    """What a pass does not show, see `families.Exceptions`."""

    first_grid: Grid | None = None
    """The patch grid of a model whose patches are cut outside of it."""
    orders: Mapping[int, Tensor] = field(default_factory=dict)
    """Number of tokens -> position of each among the rows, for a model that reorders its patches."""
    heads: Callable[[Any], Mapping[str, int] | None] | None = None
    """Attention -> width of q, k and v in each head, where a fused projection keeps these together."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the patches of a tensor are."""

    patch_grid: Grid
    n_prefix: int
    order: Tensor | None = None
    """[T], position of each token among the rows; None if they are in order."""


@dataclass(frozen=True, slots=True)
class Call:
    """One run of a linear."""

    name: str
    linear: nn.Linear
    number: int
    shape: tuple[int, ...]
    place: Place | None
    activation: tuple[str, int] | None
    """The module without weights that made the input, and which run of it."""


class Trace:
    """What one forward pass executed."""

    def __init__(self, module: nn.Module, told: Told) -> None:
        self.calls: list[Call] = []
        self.shapes: dict[str, list[list[tuple[int, ...]]]] = {}
        """Module name -> for each run, the shapes that it returned."""
        self.modules = dict(module.named_modules())
        self._grids: set[Grid] = {told.first_grid} if told.first_grid else set()
        self.told = told
        self._recent: deque[Tensor] = deque(maxlen=32)
        self._given: dict[str, int] = {}
        self._made: tuple[Tensor, str, int] | None = None
        self._runs: Counter[str] = Counter()

    def readers(self) -> tuple[dict[str, list[Callable[[Any], None]]], dict[str, list[Callable[[Any], None]]]]:
        """Of every module's inputs and outputs."""
        return {n: [self._input_reader(n)] for n in self.modules}, {n: [self._output_reader(n)] for n in self.modules}

    def _input_reader(self, name: str) -> Callable[[Any], None]:
        module = self.modules[name]

        def read(args: Any) -> None:
            tensor = args[0] if args else None
            if not isinstance(tensor, Tensor):
                return
            if isinstance(module, nn.Linear):
                made = self._made[1:] if self._made and self._made[0].data_ptr() == tensor.data_ptr() else None
                place, shape = self._find_place(tensor), tuple(tensor.shape)
                self.calls.append(Call(name, module, self._runs[name], shape, place, made))
            self._given[name] = tensor.data_ptr()
            self._remember(tensor)

        return read

    def _output_reader(self, name: str) -> Callable[[Any], None]:
        module = self.modules[name]
        acts = next(module.parameters(), None) is None and next(module.children(), None) is None

        def read(output: Any) -> None:
            items = output if isinstance(output, tuple | list) else (output,)
            self.shapes.setdefault(name, []).append([tuple(t.shape) if isinstance(t, Tensor) else () for t in items])
            if isinstance(items[0], Tensor):
                # An Identity, or a Dropout at rest, hands on what it was given and has made nothing.
                if acts and items[0].data_ptr() != self._given.get(name):
                    self._made = (items[0], name, self._runs[name])
                if isinstance(module, nn.Conv2d):
                    self._grids.add((items[0].shape[-2], items[0].shape[-1]))
                self._remember(items[0])
            self._runs[name] += 1

        return read

    def _remember(self, tensor: Tensor) -> None:
        if tensor.ndim in (3, 4) and tensor.shape[0] == 1 and tensor.is_floating_point():
            self._recent.append(tensor)

    def place_of(self, shape: tuple[int, ...]) -> Place | None:
        """Grid and prefix tokens of a tensor [1, T, F] or [1, R, C, F]."""
        if len(shape) not in (3, 4) or shape[0] != 1:
            return None
        grids = self._grids | {(-(-r // 2), -(-c // 2)) for r, c in self._grids}
        n_tokens = shape[1] if len(shape) == 3 else shape[1] * shape[2]
        fitting = [g for g in grids if 1 < g[0] * g[1] <= n_tokens < 2 * g[0] * g[1]]
        if len(shape) == 4:
            fitting = [g for g in fitting if g == shape[1:3]]
        if not fitting or (self.told.orders and n_tokens not in self.told.orders):
            return None
        grid = max(fitting, key=lambda g: g[0] * g[1])
        self._grids.add(grid)
        return Place(grid, n_tokens - grid[0] * grid[1], self.told.orders.get(n_tokens))

    def _find_place(self, tensor: Tensor) -> Place | None:
        place = self.place_of(tuple(tensor.shape))
        if place is not None or tensor.ndim < 3:
            return place
        rows: dict[bytes, int] | None = None
        for source in reversed(self._recent):
            origin = self.place_of(tuple(source.shape))
            if origin is None or source.shape[-1] != tensor.shape[-1] or source.data_ptr() == tensor.data_ptr():
                continue
            rows = rows or {row: i for i, row in enumerate(_row_bytes(tensor))}
            order = [rows.get(row, -1) for row in _row_bytes(source)]
            if min(order) >= 0 and len(set(order)) == len(order):
                return Place(origin.patch_grid, origin.n_prefix, torch.tensor(order))
        return None


def _row_bytes(tensor: Tensor) -> list[bytes]:
    rows = tensor.detach().reshape(-1, tensor.shape[-1]).contiguous().view(torch.uint8).cpu().numpy()
    return [row.tobytes() for row in rows]
