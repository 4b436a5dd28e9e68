"""What strangers name, ready for use: checked models, loaded models, opened atlases.

Two visitors who ask for the same thing at once wait for one loading; whoever asks for another thing does not wait.
What was not used for longest is put away when the shelf is full.
"""

import os
from contextlib import suppress
from threading import Condition

from cachetools import LRUCache, TTLCache, cachedmethod
from cachetools.keys import hashkey
from PIL import Image

from vitviz_hf.atlas.store import Atlas, open_atlas
from vitviz_hf.errors import AtlasError, ModelNotFoundError, VitvizError
from vitviz_hf.hub import is_hub_id, size_limit
from vitviz_hf.images import bytes_to_image, open_image, pixels_to_bytes
from vitviz_hf.models.builtin import BUILTINS
from vitviz_hf.models.gate import Snapshot, fetch_model
from vitviz_hf.models.view import ModelView, load_snapshot, to_pixels
from vitviz_hf.reading.reference import Reference, load_reference
from vitviz_hf.sites import Feature
from vitviz_hf.stream import builtin_paths

_SNAPSHOTS, _ATLASES, _PHOTOGRAPHS, _REFERENCES = 256, 16, 256, 8
_OWN_ATLAS_SECONDS = 600
"""After which an atlas that could not be opened is tried again."""


def kept_bytes() -> int:
    """Most bytes of weights that stay loaded: `VITVIZ_KEEP_GB` (default 8), at least one model of any accepted size."""
    return max(int(float(os.environ.get("VITVIZ_KEEP_GB", "8")) * 1e9), size_limit())


def weight_bytes(view: ModelView) -> int:
    """Bytes of a loaded model's weights, as they lie on its device."""
    held = [*view.module.parameters(), *view.module.buffers()]
    return min(sum(t.numel() * t.element_size() for t in held), kept_bytes())


class Shelf:
    """Models and atlases that visitors use."""

    def __init__(self, own_model: str) -> None:
        """`own_model` is the server's default; it may be a local folder, a visitor's may not."""
        self._own_model = own_model
        self._snapshots: LRUCache[object, Snapshot] = LRUCache(_SNAPSHOTS)
        self._views: LRUCache[object, ModelView] = LRUCache(kept_bytes(), weight_bytes)
        self._atlases: LRUCache[object, Atlas] = LRUCache(_ATLASES)
        self._photographs: LRUCache[object, Image.Image] = LRUCache(_PHOTOGRAPHS)
        self._own_atlas: TTLCache[object, Atlas | None] = TTLCache(1, _OWN_ATLAS_SECONDS)
        self._references: LRUCache[object, Reference] = LRUCache(_REFERENCES)
        self._fetching, self._loading, self._opening = Condition(), Condition(), Condition()
        self._scoring = Condition()
        self._decoding, self._opening_own = Condition(), Condition()

    def snapshot(self, model_id: str, revision: str | None = None) -> Snapshot:
        """Checked local files; downloads, but needs no device. Asks the Hub without the server's token.

        Raises:
            ModelError: one subclass for each reason.
        """
        model_id = (model_id or "").strip()
        if model_id not in (*BUILTINS, self._own_model) and not is_hub_id(model_id):
            raise ModelNotFoundError(
                f"{model_id!r} is not a Hub id; write OWNER/NAME as in 'google/vit-base-patch16-224', or 'builtin'."
            )
        with self._fetching:
            known = list(self._snapshots.values())
        same = next((s for s in known if (s.model_id, s.revision) == (model_id, revision)), None)
        return same or self._fetched(model_id, revision)

    @cachedmethod(lambda self: self._snapshots, condition=lambda self: self._fetching)
    def _fetched(self, model_id: str, revision: str | None) -> Snapshot:
        return fetch_model(model_id, revision, token=False)

    @cachedmethod(
        lambda self: self._views,
        key=lambda self, snapshot: hashkey(snapshot.model_id, snapshot.revision),
        condition=lambda self: self._loading,
    )
    def view(self, snapshot: Snapshot) -> ModelView:
        """The loaded model."""
        return load_snapshot(snapshot)

    @cachedmethod(
        lambda self: self._references,
        key=lambda self, view: hashkey(view.identity.key),
        condition=lambda self: self._scoring,
    )
    def reference(self, view: ModelView) -> Reference:
        """What its features do on the built-in photographs: some 10 MB, which every ranking and map asks for."""
        return load_reference(view)

    @cachedmethod(
        lambda self: self._photographs,
        key=lambda self, view, name: hashkey(view.identity.key, name),
        condition=lambda self: self._decoding,
    )
    def photograph(self, view: ModelView, name: str) -> Image.Image:
        """A built-in photograph as the model sees it."""
        return bytes_to_image(pixels_to_bytes(to_pixels(view, open_image(builtin_paths()[name]))[0]))

    def atlas(self, name: str) -> Atlas:
        """An atlas by Hub id, or the server's own (`VITVIZ_ATLAS`), which may be a folder.

        Raises:
            AtlasError: nothing given, a path, or no usable atlas.
        """
        name = (name or "").strip()
        if name != os.environ.get("VITVIZ_ATLAS") and not (is_hub_id(name) and "/" in name):
            raise AtlasError(f"{name!r} is not a Hub id; write OWNER/NAME of a dataset made by 'vitviz search'.")
        return self._opened(name)

    @cachedmethod(lambda self: self._atlases, condition=lambda self: self._opening)
    def _opened(self, name: str) -> Atlas:
        return open_atlas(name, token=False)

    @cachedmethod(lambda self: self._own_atlas, condition=lambda self: self._opening_own)
    def own_atlas(self) -> Atlas | None:
        """The server's own atlas; None if there is none or it cannot be opened."""
        name = os.environ.get("VITVIZ_ATLAS")
        with suppress(VitvizError):
            return self.atlas(name) if name else None
        return None

    def words(self, snapshot: Snapshot, features: list[Feature]) -> list[str]:
        """The best word of each feature in the server's own atlas; empty for one that has none."""
        atlas = self.own_atlas()
        of_this_model = atlas and (atlas.manifest["model_id"], atlas.manifest["revision"]) == (
            snapshot.model_id,
            snapshot.revision,
        )
        if not atlas or not of_this_model:
            return [""] * len(features)
        return [atlas.best_word(f) if f.site in atlas.sites else "" for f in features]

    def snapshot_of(self, atlas: Atlas) -> Snapshot:
        """Checked files of the model that an atlas is of, at its revision."""
        return self.snapshot(str(atlas.manifest["model_id"]), atlas.manifest["revision"])
