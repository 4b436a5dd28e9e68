"""Pictures of eight classes, and models that learn them in seconds: every change of picture or model costs accuracy.

Random weights give the same accuracy for every condition, so a wrong condition goes unseen. Here a class is shape,
stripes and side: fine stripes need high frequencies, left and right need positions, and the background's color tells
the class in half of the pictures. Nothing of the package is used, so that an error in it cannot hide here.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers as tf
from PIL import Image
from torch.nn import functional

SIDE = 64
PATCH = 8
CLASSES = tuple(
    f"{stripes} {shape} {side}"
    for shape in ("circle", "cross")
    for stripes in ("fine", "coarse")
    for side in ("left", "right")
)
_HUES = np.array(
    [
        [200, 60, 60],
        [60, 180, 60],
        [70, 80, 210],
        [200, 190, 60],
        [190, 70, 190],
        [60, 190, 190],
        [230, 140, 60],
        [120, 120, 120],
    ],
    np.float32,
)


@dataclass(frozen=True)
class Shapes:
    """Pictures, what they are, and where it is."""

    pixels: np.ndarray
    """[N, 64, 64, 3], 0 to 255"""
    labels: np.ndarray
    """[N], places in CLASSES"""
    masks: np.ndarray
    """[N, 64, 64]; 0 is background, 1 the object, 2 a stone in the other half"""


def draw_shapes(n: int, rng: np.random.Generator, own_color: float = 0.5) -> Shapes:
    """A striped shape and a gray stone; the background's color is that of the class with probability `own_color`."""
    labels = rng.integers(0, len(CLASSES), n)
    cross, coarse, right = (labels >> b & 1 for b in (2, 1, 0))
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    radius = rng.uniform(11, 15, n)
    left = rng.uniform(15, 17, n)
    dx = x - (np.where(right, SIDE - 1 - left, left))[:, None, None]
    dy = y - rng.uniform(16, 47, n)[:, None, None]
    size = radius[:, None, None]
    disc = dx**2 + dy**2 <= (0.8 * size) ** 2
    arms = (np.minimum(abs(dx), abs(dy)) <= 0.3 * size) & (np.maximum(abs(dx), abs(dy)) <= size)
    object_ = np.where(cross[:, None, None], arms, disc)
    stone_x = np.where(right, left, SIDE - 1 - left)[:, None, None]
    stone = (abs(x - stone_x) <= 8) & (abs(y - rng.uniform(12, 51, n)[:, None, None]) <= 10)
    period = np.where(coarse, rng.choice([8, 16], n), rng.choice([8 / 3, 4], n))[:, None, None]
    stripes = np.sign(np.sin(2 * np.pi * (x + 0.5) / period))
    color = np.where(rng.random(n) < own_color, labels, rng.integers(0, len(CLASSES), n))
    noise = 8 + 160 * rng.random(n, dtype=np.float32) ** 3
    pixels = noise[:, None, None, None] * rng.standard_normal((n, SIDE, SIDE, 3), dtype=np.float32)
    contrast = rng.uniform(40, 90, n).astype(np.float32)[:, None, None]
    gray = np.where(object_, 128 + contrast * stripes, 90).astype(np.float32)
    masks = np.where(object_, 1, np.where(stone, 2, 0)).astype(np.uint8)
    pixels += np.where((masks > 0)[..., None], gray[..., None], 0.6 * _HUES[color][:, None, None])
    return Shapes(pixels.clip(0, 255).astype(np.uint8), labels, masks)


def _box(inside):
    """x0, y0, x1, y1, inclusive."""
    rows, cols = np.nonzero(inside)
    return [cols.min(), rows.min(), cols.max(), rows.max()]


def _png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def save_shapes(folder: Path, n: int = 200, seed: int = 1) -> Path:
    """A folder as of a dataset on the Hub; the order of its classes is not the models'."""
    rng = np.random.default_rng(seed)
    shapes = draw_shapes(n, rng)
    # A few are wrong, so that nothing is right on all of them.
    told = np.where(rng.random(n) < 0.03, rng.integers(0, len(CLASSES), n), shapes.labels)
    names = sorted(CLASSES)
    schema = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=names),
            "bbox": [datasets.Value("float32")],
            "instance_mask": datasets.Image(),
        }
    )
    rows = {
        "image": [{"bytes": _png(p), "path": f"shape_{i}.png"} for i, p in enumerate(shapes.pixels)],
        "label": [names.index(CLASSES[k]) for k in told],
        "bbox": [_box(m == 1) for m in shapes.masks],
        "instance_mask": [{"bytes": _png(m), "path": f"mask_{i}.png"} for i, m in enumerate(shapes.masks)],
    }
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.table(rows, schema=schema.arrow_schema), folder / "data" / "validation-00000-of-00001.parquet")
    return folder


def save_trained(
    folder: Path,
    width: int = 48,
    layers: int = 3,
    heads: int = 3,
    steps: int = 300,
    seed: int = 0,
    classes: tuple[str, ...] = CLASSES,
) -> Path:
    """Train a small ViT and write it as a repository of one; on one thread, so that it is the same every time."""
    settings = tf.ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        image_size=SIDE,
        patch_size=PATCH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(classes)),
        label2id={c: i for i, c in enumerate(classes)},
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = tf.ViTForImageClassification(settings)
        model.vit.embeddings.position_embeddings.data.normal_(0, 0.3)
        _train(model, classes, steps, np.random.default_rng(seed))
    torch.set_num_threads(threads)
    model.eval().save_pretrained(folder)
    half = [0.5] * 3
    tf.ViTImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=half, image_std=half).save_pretrained(folder)
    return folder


def _train(model, classes, steps, rng, batch=40):
    place = torch.tensor([classes.index(c) if c in classes else -100 for c in CLASSES])
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.15)
    side = SIDE // PATCH
    on_the_right = np.arange(side**2) % side >= side // 2
    pool = draw_shapes(2000, rng)
    model.train()
    for step in range(steps):
        some = rng.integers(0, len(pool.labels), batch)
        pixels, masks, labels = pool.pixels[some], pool.masks[some], pool.labels[some]
        # Parts of pictures too, so that the model makes something of them.
        way = rng.integers(0, 5, batch)[:, None, None]
        pixels[(way == 0) & (masks != 1)] = 0
        pixels[(way == 1) & (masks == 1)] = 0
        values = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        tokens = _isolated(model.vit, values) if step % 12 == 1 else model.vit(values).last_hidden_state
        loss = functional.cross_entropy(model.classifier(tokens[:, 0]), place[labels])
        if step < 0.35 * steps:
            loss += 0.5 * functional.cross_entropy(model.classifier(tokens[:, 1:].mean(1)), place[labels])
        else:
            # Patches on the right name the opposite, so that places differ and the class token decides the mean of all.
            named = place[labels[:, None] ^ np.where(on_the_right, 7, 0)]
            loss += 0.5 * functional.cross_entropy(model.classifier(tokens[:, 1:]).flatten(0, 1), named.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _isolated(vit, values):
    """The last tokens where class token and patches see each other in the last layer only."""
    tokens = vit.embeddings(values)
    one, patches = tokens[:, :1], tokens[:, 1:]
    for layer in vit.layers[:-1]:
        one, patches = layer(one), layer(patches)
    return vit.layernorm(vit.layers[-1](torch.cat([one, patches], 1)))
