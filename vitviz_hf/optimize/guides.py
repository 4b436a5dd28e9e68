"""Real images that go into a picture: those whose statistics it is pulled to, or the one that it starts from."""

import base64
import io
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from vitviz_hf import _torchvision  # noqa: F401  before anything that imports torchvision

# isort: split
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vitviz_hf.errors import ConfigError, NonFiniteError
from vitviz_hf.images import cover, encode, image_to_pixels, open_image, pixels_to_image
from vitviz_hf.models.view import ModelView, at_precision, find_tap
from vitviz_hf.optimize.collages import MOST, collages
from vitviz_hf.optimize.config import VisualizeConfig
from vitviz_hf.optimize.objectives import AtToken, Objective, Target, check_objective, to_objective
from vitviz_hf.optimize.scores import score_pixels
from vitviz_hf.reading.recording import activations
from vitviz_hf.sites import Feature, Site, parse_site
from vitviz_hf.stream import builtin_photographs

N_IMAGES = 9
"""Of those that excite a feature most, as many as are taken where nobody chooses them."""
PASSES = 39
"""What `builtin_images` and `guide_by_images` take together; an image that only goes forward is a third."""
_CLOSER = 8
"""Built-in photographs of which parts are looked at, for an objective."""
_UNIFORM = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class Guide:
    """What real images give to one picture."""

    n_images: int
    best: float
    """Largest score of the objective on them; where there are moments above 0, if need be of what is above 0 alone."""
    moments: Mapping[Site, Tensor] = field(default_factory=dict)
    """[2, F] mean and deviation of every feature over the images' patches, on the CPU."""
    start: bytes = b""
    """JPEG of what the picture starts from, at the model's input size; empty for noise, as in recipes of old."""

    def to_json(self) -> dict[str, Any]:
        """As recipes have it."""
        told: dict[str, Any] = {"images": self.n_images, "best": self.best}
        if self.start:
            told["start"] = base64.b64encode(self.start).decode()
        return told | {"moments": {str(s): _pack(m) for s, m in self.moments.items()}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Guide":
        """The inverse of `to_json`.

        Raises:
            ValueError: numbers that no images give.
        """
        moments = {parse_site(s, None): _unpack(m) for s, m in dict(values["moments"]).items()}
        start, best = base64.b64decode(values.get("start", ""), validate=True), torch.tensor(float(values["best"]))
        if not all(x.isfinite().all() for x in (best, *moments.values())) or (moments and best <= 0):
            raise ValueError("a guide's numbers must be finite, and its best score above 0")
        return cls(int(values["images"]), float(values["best"]), moments, start)

    @property
    def photograph(self) -> Tensor | None:
        """What the picture starts from, [3, H, W] in [0, 1]; None for noise."""
        return image_to_pixels(open_image(self.start)) if self.start else None


@dataclass(frozen=True, slots=True, eq=False)
class Guides:
    """What the same real images give to the pictures of all seeds."""

    shared: Guide
    starts: Sequence[bytes]
    """What the pictures of the seeds start from, in turn."""

    def of(self, seed: int) -> Guide:
        """For the picture of a seed."""
        return replace(self.shared, start=self.starts[seed % len(self.starts)])


def guide_by_images(view: ModelView, target: Objective | Target | str, images: Tensor, seed: int = 0) -> Guide:
    """What the preset `aligned` needs: statistics of the patches of images that excite a feature, and a collage.

    Patches count by how much they excite it, and a little all alike. For directions, sums and classes, images count by
    their scores, and all patches of an image alike. The picture starts from a collage, see `collages`; at one token
    from an image.

    Args:
        images: [N, 3, H, W] in [0, 1] at the model's input size.
        seed: of the picture, as in its options. There are as many collages as images that excite the feature, up to 36;
            of four images or fewer, one in another order.

    Raises:
        ConfigError: no image, or none where the objective is above 0; or images of another size.
        NonFiniteError: its values on them are NaN or infinite.

    Source: after VITAL, arXiv:2503.22399, with two moments in the place of the whole distribution.
    """
    return guides_by_images(view, target, images).of(seed)


def guides_by_images(view: ModelView, target: Objective | Target | str, images: Tensor) -> Guides:
    """As `guide_by_images`, for the pictures of all seeds."""
    objective = to_objective(target, view.kinds)
    check_objective(view, objective)
    _check_size(view, images)
    nothing = ConfigError(
        f"'{objective}' is above 0 nowhere on the {len(images)} images, so they tell nothing of it: take others "
        "(--images or --atlas; in the app: search photographs in Browse features), or a preset without images."
    )
    if not len(images):
        raise nothing
    maps = _maps(view, objective, images).clamp_min(0)
    scores = score_pixels(view, [objective], images[None].to(view.device))[0]
    if not (scores.isfinite().all() and maps.isfinite().all()):
        raise NonFiniteError(f"'{objective}' is NaN or infinite on some of the {len(images)} images; take others.")
    # Where a feature fires at some patches, its mean over all may still be below 0; at one token only that one counts.
    at_token = isinstance(objective.terms[0][1], AtToken)
    if not ((scores > 0).any() or (maps.any() and not at_token)):
        raise nothing
    best = float(scores.max()) if (scores > 0).any() else float(maps.mean((1, 2)).max())
    maps = maps if maps.any() else torch.ones_like(maps)
    found = activations(view, images.to(view.device), _sites(view, objective))
    moments = {}
    for site, acts in found.items():
        weights = functional.interpolate(maps[:, None], acts.tap.patch_grid, mode="area").flatten()
        weights = (1 - _UNIFORM) * weights / weights.sum() + _UNIFORM / len(weights)
        values = acts.in_float32().patches.flatten(0, 1)
        mean = weights @ values
        moments[site] = torch.stack([mean, (weights @ (values - mean).square()).sqrt()]).cpu()
    if at_token:  # what is put together would lie under another token
        order = scores.argsort(descending=True, stable=True).tolist()
        starts = [images[i] for i in order[: max(1, min(int((scores > 0).sum()), MOST))]]
    else:
        starts = list(collages(images.cpu(), maps.cpu()))
    return Guides(Guide(len(images), best, moments), tuple(map(_keep, starts)))


def builtin_images(
    view: ModelView, target: Objective | Target | str, progress: Callable[[int, int], None] | None = None
) -> Tensor:
    """What excites an objective most among the built-in photographs, and among nine parts of each of the best eight.

    Parts are half as high and wide.

    Args:
        progress: is told how many of how many images were read.

    Returns:
        [9, 3, H, W] in [0, 1] at the model's input size, the best first.

    Raises:
        ConfigError: a malformed objective.
    """
    reading = read_builtin_images(view, target)
    while True:
        try:
            done, n = next(reading)
        except StopIteration as end:
            images: Tensor = end.value
            return images
        if progress:
            progress(done, n)


def read_builtin_images(view: ModelView, target: Objective | Target | str) -> Generator[tuple[int, int], None, Tensor]:
    """As `builtin_images`, one photograph after the other: how many of how many images were read."""
    objective = to_objective(target, view.kinds)
    check_objective(view, objective)

    def scored(images: list[Image.Image]) -> list[tuple[float, Image.Image]]:
        pixels = torch.stack([image_to_pixels(image) for image in images])
        scores = score_pixels(view, [objective], pixels[None].to(view.device))[0].tolist()
        return list(zip(scores, images, strict=True))

    height, width = view.input_size
    corners = list(product((0, height // 2, height), (0, width // 2, width)))
    photographs, found = [p.image for p in builtin_photographs()], []
    n = len(photographs) + len(corners) * min(_CLOSER, len(photographs))
    for photograph in photographs:
        found.append((scored([cover(photograph, view.input_size)])[0], photograph))
        yield len(found), n
    found.sort(key=lambda item: -item[0][0])
    every = [whole for whole, _ in found]
    for _, photograph in found[:_CLOSER]:
        large = cover(photograph, (2 * height, 2 * width))
        every += scored([large.crop((x, y, x + width, y + height)) for y, x in corners])
        yield len(every), n
    best = sorted(every, key=lambda pair: -pair[0])[:N_IMAGES]
    return torch.stack([image_to_pixels(image) for _, image in best])


def guide_by_photograph(view: ModelView, target: Objective | Target | str, photograph: Tensor) -> Guide:
    """What the preset `accent` needs: the photograph that the picture starts from.

    Args:
        photograph: [3, H, W] in [0, 1] at the model's input size.

    Raises:
        ConfigError: a photograph of another size.

    Source: after Hamblin et al. 2024, "Feature Accentuation", arXiv:2402.10039.
    """
    objective = to_objective(target, view.kinds)
    check_objective(view, objective)
    _check_size(view, photograph)
    score = float(score_pixels(view, [objective], photograph[None, None].to(view.device)))
    return Guide(1, score, start=_keep(photograph))


def _keep(pixels: Tensor) -> bytes:
    return encode(pixels_to_image(pixels), "JPEG", quality=95, subsampling=0)


def guide_by(view: ModelView, target: Objective | Target | str, images: Tensor, config: VisualizeConfig) -> Guide:
    """What the options need of images [N, 3, H, W], the best first: the statistics of all, or the first one.

    Statistics are read in the precision of the options, as those of the picture will be.

    Raises:
        ConfigError: as `guide_by_images` and `guide_by_photograph`.
    """
    if config.align:
        return guide_by_images(at_precision(view, config.precision), target, images, config.seed)
    return guide_by_photograph(view, target, images[0])


def check_guides(
    view: ModelView, config: VisualizeConfig, objectives: Sequence[Objective], guides: Sequence[Guide]
) -> None:
    """Raise unless there is what the options need, for each objective.

    Raises:
        ConfigError: there is not.
    """
    if config.align and config.keep:
        raise ConfigError(
            "a picture is pulled to images (align) or kept near a photograph (keep); set one of them to 0."
        )
    needs = needed(config)
    if not needs and guides:
        raise ConfigError("real images were given, but the options use none; take the preset 'aligned' or 'accent'.")
    fits = all(g.moments if config.align else g.start and not g.moments for g in guides)
    if needs and (len(guides) != len(objectives) or not fits):
        raise ConfigError(
            f"these options need {needs}, for each of {len(objectives)} objectives; got {len(guides)} guides; make "
            f"them with {'guide_by_images' if config.align else 'guide_by_photograph'}."
        )
    for objective, guide in zip(objectives, guides, strict=False):
        if guide.start:
            _check_start(view, guide.start)
        if config.align and {s: m.shape for s, m in guide.moments.items()} != _shapes(view, objective):
            raise ConfigError(f"a guide of '{objective}' was made for another objective or model.")
    if any(g.start for g in guides) and config.margin >= min(view.input_size):
        raise ConfigError(f"margin must be below {min(view.input_size)} beside a photograph; got {config.margin}.")


def needed(config: VisualizeConfig) -> str:
    """The real images that options need, in words; empty without any."""
    return "images that excite the feature" if config.align else "a photograph to start from" if config.keep else ""


def misfit(reads: Mapping[Site, Tensor], guides: Sequence[Guide]) -> Tensor:
    """How far pictures are from the statistics of their real images, [N]: 0 if they have the same, about 2 at first.

    Args:
        reads: site -> values [N, M, P, F] on M copies of N pictures.
    """
    apart = []
    for site, values in reads.items():
        want = torch.stack([g.moments[site] for g in guides]).to(values.device)
        flat = values.flatten(1, 2)
        for own, wanted in ((flat.mean(1), want[:, 0]), (flat.std(1, correction=0), want[:, 1])):
            apart.append((own - wanted).norm(dim=1) / wanted.norm(dim=1).clamp_min(1e-6))
    return 2 * torch.stack(apart).mean(0)


class Photographs:
    """Photographs that pictures start from, and how far the pictures left them where their features do not fire.

    For directions, sums and classes they are kept everywhere alike.
    """

    def __init__(self, view: ModelView, objectives: Sequence[Objective], guides: Sequence[Guide], margin: int) -> None:
        pixels = torch.stack([p for g in guides if (p := g.photograph) is not None]).to(view.device)
        self.pixels = functional.pad(pixels, [margin] * 4, mode="reflect")
        free, unit = [], []
        for objective, own in zip(objectives, pixels, strict=True):
            values = _maps(view, objective, own[None])
            fires = values.clamp_min(0) if values.numel() > 1 else torch.zeros_like(values)
            wide = functional.interpolate(fires[:, None], view.input_size, mode="bilinear")
            wide = wide / wide.amax().clamp_min(1e-12)
            free.append(functional.pad(wide, [margin] * 4, mode="reflect")[0])
            unit.append(values.abs().amax())
        self.held, self.unit = 1 - torch.stack(free), torch.stack(unit)
        self.usual = self.pixels.var((1, 2, 3)).clamp_min(1e-4)

    def left(self, canvases: Tensor) -> Tensor:
        """In units of the objective's largest value on the photograph: 1 for a gray one, [N].

        Args:
            canvases: [N, 3, h, w] in [0, 1], with the margin.
        """
        apart = (self.held * (canvases - self.pixels).square()).mean((1, 2, 3))
        return self.unit * apart / self.usual


def _sites(view: ModelView, objective: Objective) -> list[Site]:
    """The first blocks, which see texture and color, and those up to the objective's."""
    last = max((s.layer for s in objective.sites), default=len(view.layers) - 1)
    last = len(view.layers) - 1 if objective.needs_logits else last
    return [Site(layer, "resid") for layer in sorted({i for i in (0, 1, 3, last - 2, last) if 0 <= i <= last})]


def _shapes(view: ModelView, objective: Objective) -> dict[Site, tuple[int, int]]:
    """Of moments."""
    return {site: (2, find_tap(view, site).size) for site in _sites(view, objective)}


def _check_start(view: ModelView, start: bytes) -> None:
    """By its header, before a stranger's large picture is decoded."""
    try:
        with Image.open(io.BytesIO(start), formats=["JPEG"]) as image:
            size = (image.height, image.width)
    except (OSError, SyntaxError) as error:
        raise ConfigError("what a guide starts from is no JPEG.") from error
    _check_size(view, torch.empty(*size, device="meta"))


def _check_size(view: ModelView, pixels: Tensor) -> None:
    if (size := tuple(pixels.shape[-2:])) != view.input_size:
        raise ConfigError(f"a real image must have the input size {view.input_size}; got {size}; see to_pixels.")


def _maps(view: ModelView, objective: Objective, images: Tensor) -> Tensor:
    """Values of an objective at every patch, [N, R, C]; of directions, sums and classes the score, [N, 1, 1]."""
    weight, target = objective.terms[0]
    if isinstance(target, AtToken):
        target = target.target
    images = images.to(view.device)
    if len(objective.terms) > 1 or not isinstance(target, Feature):
        return score_pixels(view, [objective], images[None])[0][:, None, None]
    return weight * activations(view, images, [target.site])[target.site].in_float32().map(target.index)


def _pack(values: Tensor) -> str:
    return base64.b64encode(values.float().numpy().tobytes()).decode()


def _unpack(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), np.float32).reshape(2, -1).copy())
