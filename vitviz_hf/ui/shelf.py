"""What strangers name, ready for use: checked models, loaded models, opened atlases.

Two visitors who ask for the same thing at once wait for one loading; whoever asks for another thing does not wait.
What was not used for longest is put away when the shelf is full.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from threading import BoundedSemaphore, Condition

from cachetools import LRUCache, TTLCache, cachedmethod
from cachetools.keys import hashkey
from PIL import Image

from vitviz_hf.atlas.card import find_atlases
from vitviz_hf.atlas.store import Atlas, open_atlas
from vitviz_hf.errors import (
    AtlasError,
    BusyError,
    ConfigError,
    GatedModelError,
    ModelError,
    ModelNotFoundError,
    VitvizError,
)
from vitviz_hf.hub import Token, is_hub_id, size_limit
from vitviz_hf.images import bytes_to_image, open_image, pixels_to_bytes
from vitviz_hf.models.builtin import BUILTINS
from vitviz_hf.models.gate import Snapshot, fetch_model, fetch_tokenizer
from vitviz_hf.models.view import ModelView, load_snapshot, to_pixels
from vitviz_hf.reading.reference import Reference, load_reference
from vitviz_hf.sites import Feature, Site
from vitviz_hf.stream import builtin_paths
from vitviz_hf.ui.made import UPLOADED, closed_parts, is_made, list_made, mark_used, newest_atlas
from vitviz_hf.ui.visitor import Admission, check_open, visitor_key

_SNAPSHOTS, _ATLASES, _PHOTOGRAPHS, _REFERENCES = 256, 16, 256, 8
MOST_DOWNLOADS = 60
"""Visitors who wait for the Hub at once: each takes a thread of the server."""
_OWN_ATLAS_SECONDS, _FOUND_SECONDS = 600, 300
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
        self._own_atlas: TTLCache[object, Atlas | None] = TTLCache(_SNAPSHOTS, _OWN_ATLAS_SECONDS)
        self._references: LRUCache[object, Reference] = LRUCache(_REFERENCES)
        self._fetching, self._loading, self._opening = Condition(), Condition(), Condition()
        self._found: TTLCache[object, tuple[list[str], str]] = TTLCache(_SNAPSHOTS, _FOUND_SECONDS)
        self._scoring, self._finding = Condition(), Condition()
        self._decoding, self._opening_own = Condition(), Condition()
        self._admission = Admission()
        self._asking = BoundedSemaphore(MOST_DOWNLOADS)

    def snapshot(self, model_id: str, revision: str | None = None) -> Snapshot:
        """Checked local files; downloads, but needs no device. Asks the Hub without the server's token.

        What is gated or private is asked for with the visitor's own, by every visitor anew.

        Raises:
            ModelError: one subclass for each reason.
            BusyError: too many wait for the Hub.
        """
        model_id = (model_id or "").strip()
        if model_id not in (*BUILTINS, self._own_model) and not is_hub_id(model_id):
            raise ModelNotFoundError(
                f"{model_id!r} is not a Hub id; write OWNER/NAME as in 'google/vit-base-patch16-224', or 'builtin'."
            )
        with self._fetching:
            by_name, known = self._snapshots.get(hashkey(model_id, revision)), list(self._snapshots.values())
        same = by_name or next((s for s in known if (s.model_id, s.revision) == (model_id, revision)), None)
        if same:
            return same

        def fetched(token: Token) -> Snapshot:
            with self._asks():
                return _with_token(model_id, revision, token) if token else self._fetched(model_id, revision)

        return self._admission.open((model_id, revision), fetched, (GatedModelError, ModelNotFoundError))

    @contextmanager
    def _asks(self) -> Iterator[None]:
        """Around what waits for the Hub, or for another visitor who does; what is known is not asked for."""
        if not self._asking.acquire(blocking=False):
            raise BusyError(f"{MOST_DOWNLOADS} visitors wait for the Hub already; try again in a minute.")
        try:
            yield
        finally:
            self._asking.release()

    @cachedmethod(lambda self: self._snapshots, condition=lambda self: self._fetching)
    def _fetched(self, model_id: str, revision: str | None) -> Snapshot:
        snapshot = fetch_model(model_id, revision, token=False)
        if snapshot.revision:
            check_open(model_id)
        return snapshot

    def is_open(self, snapshot: Snapshot) -> bool:
        """Whether everybody may see a model."""
        with self._fetching:
            return snapshot.revision is None or snapshot in self._snapshots.values()

    @cachedmethod(
        lambda self: self._views,
        key=lambda self, snapshot: hashkey(snapshot.model_id, snapshot.revision),
        condition=lambda self: self._loading,
    )
    def view(self, snapshot: Snapshot) -> ModelView:
        """The loaded model."""
        return load_snapshot(snapshot)

    def views(self, snapshots: Sequence[Snapshot]) -> list[ModelView]:
        """Several loaded models at once.

        Raises:
            ConfigError: together they take more memory than all that is kept.
        """
        found: list[ModelView] = []
        for snapshot in snapshots:
            found.append(self.view(snapshot))
            if len(found) > 1 and sum(map(weight_bytes, found)) > kept_bytes():
                raise ConfigError(
                    f"the weights of these models take more than {kept_bytes() / 1e9:g} GB together; compare fewer."
                )
        return found

    def described(self, snapshot: Snapshot) -> ModelView:
        """The loaded model for its facts: on the CPU where only jobs have a device (ZeroGPU)."""
        return load_snapshot(snapshot, "cpu") if os.environ.get("SPACES_ZERO_GPU") else self.view(snapshot)

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
        """An atlas by Hub id, by its name if it was made here, or the server's own (`VITVIZ_ATLAS`), maybe a folder.

        Raises:
            AtlasError: nothing given, a path, or no usable atlas.
            BusyError: too many wait for the Hub.
        """
        name = (name or "").strip()
        if is_made(name):
            return self._made(name)
        if name != os.environ.get("VITVIZ_ATLAS") and not (is_hub_id(name) and "/" in name):
            raise AtlasError(f"{name!r} is not a Hub id; write OWNER/NAME of a dataset made by 'vitviz search'.")

        def opened(token: Token) -> Atlas:
            with self._opening:
                known = None if token else self._atlases.get(hashkey(name))
            if known:
                return known
            with self._asks():
                return open_atlas(name, token) if token else self._opened(name)

        return self._admission.open(name, opened, (AtlasError,))

    @cachedmethod(lambda self: self._atlases, condition=lambda self: self._opening)
    def _opened(self, name: str) -> Atlas:
        return open_atlas(name, token=False)

    def _made(self, name: str) -> Atlas:
        folder = newest_atlas(name)
        if folder is None:
            raise AtlasError(f"the atlas {name!r} is no longer on this server; search again, or choose another one.")
        if closed := self._closed_to(name):
            raise AtlasError(f"the atlas {name!r} is of {closed!r}, which you may not read; ask for access on the Hub.")
        mark_used(name)
        return replace(self._opened(str(folder)), name=name)

    def _closed_to(self, name: str) -> str:
        """What an atlas was made of that the visitor may not read; empty if there is nothing."""
        return next((part for kind, part in closed_parts(name) if not self._admission.may_read(kind, part)), "")

    @cachedmethod(
        lambda self: self._own_atlas, key=lambda self: visitor_key(), condition=lambda self: self._opening_own
    )
    def own_atlas(self) -> Atlas | None:
        """The server's own atlas; None if there is none or this visitor cannot open it."""
        name = os.environ.get("VITVIZ_ATLAS")
        with suppress(VitvizError):
            return self.atlas(name) if name else None
        return None

    def own_atlases(self, snapshot: Snapshot) -> list[Atlas]:
        """The server's own atlas if it is of a model, else nothing."""
        own = self.own_atlas()
        return [own] if own and is_of(own, snapshot) else []

    def made_atlases(self, snapshot: Snapshot) -> list[Atlas]:
        """Those made on this server for a model, the one with most images first; not those of uploaded photographs."""
        found = []
        for name, folder in list_made().items():
            with suppress(VitvizError):  # put away meanwhile
                found.append(replace(self._opened(str(folder)), name=name))
        fitting = [a for a in found if is_of(a, snapshot) and a.manifest["dataset"] != UPLOADED]
        fitting = [a for a in fitting if not self._closed_to(a.name)]
        return sorted(fitting, key=lambda a: (-a.manifest["n_images"], -len(a.sites), a.name))

    def atlas_for(self, snapshot: Snapshot, site: Site | None = None) -> Atlas | None:
        """The atlas that is in use for a model where none was chosen; None if there is none.

        The server's own if it is of this model, else the one made here with most images. Downloads nothing but the
        server's own.

        Args:
            site: leave out those that do not cover it.
        """
        known = self.own_atlases(snapshot) + self.made_atlases(snapshot)
        fitting = [a for a in known if site is None or site in a.sites]
        if fitting and is_made(fitting[0].name):
            mark_used(fitting[0].name)
        return fitting[0] if fitting else None

    def words(self, snapshot: Snapshot, features: list[Feature], chosen: Atlas | None = None) -> list[str]:
        """The best word of each feature in the chosen atlas, else that in use for its site; empty for one without."""
        own = chosen if chosen and is_of(chosen, snapshot) else None
        sites = {f.site for f in features}
        atlases = {s: own if own and s in own.sites else self.atlas_for(snapshot, s) for s in sites}
        return [atlas.best_word(f) if (atlas := atlases[f.site]) else "" for f in features]

    @cachedmethod(lambda self: self._found, key=lambda self, model_id: model_id, condition=lambda self: self._finding)
    def found_atlases(self, model_id: str) -> tuple[list[str], str]:
        """Ids of the atlases of a model on the Hub, and what is to be said of it; asked without a token."""
        try:
            return find_atlases(model_id, token=False), ""
        except AtlasError:
            return [], "The Hub cannot be asked for atlases now."

    def snapshot_of(self, atlas: Atlas) -> Snapshot:
        """Checked files of the model that an atlas is of, at its revision."""
        return self.snapshot(str(atlas.manifest["model_id"]), atlas.manifest["revision"])


def _with_token(model_id: str, revision: str | None, token: Token) -> Snapshot:
    """A model that was opened with a visitor's token, which is left out."""
    snapshot = fetch_model(model_id, revision, token)
    with suppress(ModelError):  # who needs it is told then
        fetch_tokenizer(snapshot)  # now, since later there is no token
    return replace(snapshot, token=False)


def is_of(atlas: Atlas, snapshot: Snapshot) -> bool:
    """Whether an atlas is of a model, at its revision."""
    return (atlas.manifest["model_id"], atlas.manifest["revision"]) == (snapshot.model_id, snapshot.revision)
