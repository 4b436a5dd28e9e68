"""HTML from templates. Whatever is put in is escaped: names, labels and words come from strangers."""

import base64
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from PIL import Image

from vitviz_hf.images import encode


def load_template(package: str, name: str) -> Template:
    """A template of the folder `templates` of a package; pictures go in by the filter `data_uri`."""
    return _environment(package).get_template(name)


@cache
def _environment(package: str) -> Environment:
    environment = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["data_uri"] = to_data_uri
    return environment


def to_data_uri(image: Image.Image, quality: int = 85) -> str:
    """The picture itself as an address, JPEG."""
    return "data:image/jpeg;base64," + base64.b64encode(encode(image, "JPEG", quality=quality)).decode()
