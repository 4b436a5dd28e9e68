"""Random numbers of a picture, from its generator of the CPU; where another device computes, a step ahead of it."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

Make = Callable[..., Tensor]
"""A function of torch that draws, such as `torch.rand`."""


class Ahead:
    """A generator whose numbers for the next step are drawn in a thread while the device computes this one.

    Every step draws the same shapes in the same order, which the first one tells. So the numbers are those of the
    generator alone.
    """

    def __init__(self, generator: torch.Generator, pool: Executor) -> None:
        self._generator, self._pool = generator, pool
        self._calls: list[tuple[Make, tuple[object, ...]]] = []
        self._coming: Future[list[Tensor]] | None = None
        self._numbers: Iterator[Tensor] | None = None

    def draw(self, make: Make, *args: object) -> Tensor:
        """The next numbers of this step."""
        if self._coming is None:
            self._calls.append((make, args))
            return make(*args, generator=self._generator)
        if self._numbers is None:
            self._numbers = iter(self._coming.result())
        return next(self._numbers)

    def turn(self) -> None:
        """As `turn`."""
        self._numbers, self._coming = None, self._pool.submit(self._draw_all)

    def _draw_all(self) -> list[Tensor]:
        return [make(*args, generator=self._generator) for make, args in self._calls]


@contextmanager
def drawing(generators: Sequence[torch.Generator], device: torch.device) -> Iterator[Sequence[torch.Generator | Ahead]]:
    """The generators, for a device beside the CPU with threads that draw ahead of it."""
    if device.type == "cpu":
        yield generators
        return
    with ThreadPoolExecutor() as pool:
        yield [Ahead(generator, pool) for generator in generators]


def turn(sources: Sequence[torch.Generator | Ahead]) -> None:
    """A step has all its numbers: begin to draw the next one's."""
    for source in sources:
        if isinstance(source, Ahead):
            source.turn()


def draw(source: torch.Generator | Ahead, make: Make, *args: object) -> Tensor:
    """Numbers drawn by a function of torch."""
    return source.draw(make, *args) if isinstance(source, Ahead) else make(*args, generator=source)
