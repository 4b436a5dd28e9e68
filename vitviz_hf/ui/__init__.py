"""The Gradio app. The only place that imports gradio."""

from vitviz_hf.ui.app import build as build
from vitviz_hf.ui.app import launch as launch

__all__ = ["build", "launch"]
