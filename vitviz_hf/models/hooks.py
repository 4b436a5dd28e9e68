"""The only place that registers hooks; every hook is removed on every exit."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

Reader = Callable[[Any], None]


@contextmanager
def read_inputs_and_outputs(
    module: nn.Module,
    inputs: Mapping[str, Sequence[Reader]],
    outputs: Mapping[str, Sequence[Reader]],
) -> Iterator[None]:
    """Call readers with the inputs or the outputs of named submodules, inside the block.

    Only forwards of the calling thread are read: a server runs several on one module.

    Args:
        inputs: submodule name -> readers of the tuple of its positional inputs.
        outputs: submodule name -> readers of its output, a tensor or a tuple.
    """
    owner = threading.get_ident()

    def read(readers: Sequence[Reader], value: Any) -> None:
        if threading.get_ident() == owner:
            for reader in readers:
                reader(value)

    def pre(readers: Sequence[Reader]) -> Callable[..., None]:
        return lambda _, args: read(readers, args)

    def post(readers: Sequence[Reader]) -> Callable[..., None]:
        return lambda _, __, output: read(readers, output)

    with ExitStack() as stack:
        for name, readers in inputs.items():
            stack.callback(module.get_submodule(name).register_forward_pre_hook(pre(readers)).remove)
        for name, readers in outputs.items():
            stack.callback(module.get_submodule(name).register_forward_hook(post(readers)).remove)
        yield


@contextmanager
def replace_inputs_and_outputs(
    module: nn.Module,
    inputs: Mapping[str, Callable[[Tensor], Tensor]],
    outputs: Mapping[str, Callable[[Tensor], Tensor]],
) -> Iterator[None]:
    """Change the first tensor that named submodules are given or return, inside the block.

    Only forwards of the calling thread are changed.
    """
    owner = threading.get_ident()

    def pre(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if threading.get_ident() != owner:
                return None
            if args:
                return (change(args[0]), *args[1:]), kwargs
            name = next(k for k, v in kwargs.items() if isinstance(v, Tensor))
            return args, {**kwargs, name: change(kwargs[name])}

        return hook

    def post(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        def hook(_: Any, __: Any, output: Any) -> Any:
            if threading.get_ident() != owner:
                return None
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        return hook

    with ExitStack() as stack:
        for name, change in inputs.items():
            hook = module.get_submodule(name).register_forward_pre_hook(pre(change), with_kwargs=True)
            stack.callback(hook.remove)
        for name, change in outputs.items():
            stack.callback(module.get_submodule(name).register_forward_hook(post(change)).remove)
        yield
