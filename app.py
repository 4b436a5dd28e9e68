"""The Space. Off ZeroGPU, `spaces.GPU` returns the job unchanged, and without the package it is not needed."""

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

try:
    import spaces  # before torch: on ZeroGPU it must see CUDA first
except ImportError:
    spaces = None

from vitviz_hf.ui.app import launch


def gpu(duration: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Run a job on ZeroGPU's GPU for `duration` seconds, or a function of the job's arguments."""
    return spaces.GPU(duration=duration) if spaces else lambda job: job


if __name__ == "__main__":
    launch(gpu=gpu, eager=not os.environ.get("SPACES_ZERO_GPU"))
