"""Files that the page links to."""

from typing import Any
from urllib.parse import quote

from gradio.processing_utils import save_bytes_to_cache


def keep_file(component: Any, data: bytes, name: str) -> str:
    """Put a file where gradio serves it until `delete_cache` of the app deletes it.

    Args:
        component: that shows it.

    Returns:
        Its path.
    """
    path = save_bytes_to_cache(data, name, component.GRADIO_CACHE)
    component.temp_files.add(path)
    return path


def file_link(path: str) -> str:
    """Its address on the page, for a file that was kept or lies in a folder that `launch` allows."""
    return f"gradio_api/file={quote(path)}"
