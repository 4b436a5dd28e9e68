"""The experiments over again in plain transformers, PIL and numpy: nothing of the package is used here."""

import io
import json
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import pyarrow.parquet as pq
import torch
import transformers
from PIL import Image


@dataclass(frozen=True)
class Picture:
    """A row of the data, decoded."""

    pixels: np.ndarray
    label: str
    box: tuple[int, int, int, int]
    mask: np.ndarray
    key: int


def read_pictures(folder):
    """All pictures of a folder of parquet, in order."""
    table = pq.read_table(next(folder.rglob("*.parquet")))
    names = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    found = []
    for row in table.to_pylist():
        data = row["image"]["bytes"]
        mask = np.asarray(Image.open(io.BytesIO(row["instance_mask"]["bytes"])))
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        key = int.from_bytes(sha256(data).digest()[:8], "big") >> 1
        found.append(Picture(pixels, names[row["label"]], tuple(map(int, row["bbox"])), mask, key))
    return found


class Model:
    """A ViT on pictures of its own size, so that there is nothing to resize."""

    def __init__(self, folder):
        self.module = transformers.ViTForImageClassification.from_pretrained(folder).eval()
        self.labels = list(self.module.config.id2label.values())

    def ranks(self, pictures, truth):
        """How many classes stand before the true one, for each picture; -1 where the model does not know the class."""
        values = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            logits = torch.cat([self.module(pixel_values=v).logits for v in values.split(50)]).numpy()
        order = np.argsort(-logits, 1, kind="stable")
        return np.array(
            [
                list(row).index(self.labels.index(name)) if name in self.labels else -1
                for row, name in zip(order, truth, strict=True)
            ]
        )


def inside_box(picture):
    inside = np.zeros(picture.pixels.shape[:2], bool)
    x0, y0, x1, y1 = picture.box
    inside[y0 : y1 + 1, x0 : x1 + 1] = True
    return inside


def share(ranks, k, full=None, use=None):
    """Percent of known pictures among the k first; or in percent of that on the full ones."""
    known = ranks >= 0 if use is None else (ranks >= 0) & use
    own = 100 * (ranks[known] < k).mean()
    return own if full is None else 100 * own / (100 * (full[known] < k).mean())


def interval(ranks, k, full=None, n=4000):
    """Ends of the 95 % interval, pictures drawn again with numpy's choice."""
    rng = np.random.default_rng(7)
    known = np.flatnonzero(ranks >= 0)
    right = (ranks[known] < k).astype(float)
    base = np.ones_like(right) if full is None else (full[known] < k).astype(float)
    drawn = rng.integers(0, len(known), (n, len(known)))
    return np.quantile(100 * right[drawn].mean(1) / base[drawn].mean(1), (0.025, 0.975))
