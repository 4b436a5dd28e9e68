"""How well the pictures of an atlas tell what their features see, by a second network, kept in agreement.json."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from vitviz_hf.manifest import replace_file


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often a second network picks the images of a feature, see `vitviz experiment agreement`; 50 is chance."""

    judge: str
    """Its model id."""
    picture: float
    """Right choices by the optimized picture, in %."""
    exemplar: float
    """The same by the most activating of the images that are not asked about."""

    def __str__(self) -> str:
        return (
            f"a second network ({self.judge}) picks its images by this picture in {self.picture:.0f} % of the trials; "
            f"by its best photograph in {self.exemplar:.0f} %"
        )


def write_agreements(path: Path, found: Mapping[str, tuple[str, Agreement]]) -> None:
    """Keep figures; those of other pictures stay.

    Args:
        path: the atlas's agreement.json.
        found: address -> digest of the picture that was judged, and its figure.
    """
    features = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    for address, (digest, one) in found.items():
        features[address] = {
            "judge": one.judge,
            "picture": one.picture,
            "exemplar": one.exemplar,
            "sha256": digest,
        }
    with replace_file(path) as part:
        part.write_text(json.dumps(features, indent=1), "utf-8")


@lru_cache(maxsize=16)
def read_agreements(path: Path, version: tuple[int, ...]) -> Mapping[tuple[str, str], Agreement]:
    """Figures by address and digest of the picture: of another picture than was judged there is none.

    Raises:
        ValueError: no such file, as may come from a stranger.
    """
    try:
        return {
            (address, str(facts["sha256"])): Agreement(
                str(facts["judge"]), *map(_percent, (facts["picture"], facts["exemplar"]))
            )
            for address, facts in json.loads(path.read_text("utf-8")).items()
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path.name} is malformed ({error!r})") from error


def digest_of(picture: Path) -> str:
    """What tells a picture from others."""
    return sha256(picture.read_bytes()).hexdigest()


def _percent(value: float) -> float:
    if not 0 <= float(value) <= 100:
        raise ValueError(f"{value!r} is no share in %")
    return float(value)
