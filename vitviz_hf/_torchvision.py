"""Makes `import torchvision` work beside a CPU build of torch. Import this before transformers or timm.

torchvision's wheel is built for CUDA; beside a CPU torch its operator library does not load, so registering
the fake kernels of `nms` and `qnms` fails. Declaring their two schemas is enough: we never call them.
"""

import sys

import torch

_library: torch.library.Library | None = None

try:
    import torchvision
except RuntimeError as error:
    if "torchvision::nms" not in str(error):
        raise
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for op in ("nms", "qnms"):
        _library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401
