"""Finding a dataset's classes among a model's labels, by WordNet id or by name."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from vitviz_hf.models.loading import imagenet_synsets
from vitviz_hf.stream import Row, is_wnid


class LabelMatcher:
    """Places of a dataset's classes among a model's labels.

    A WordNet id is looked up under its name in ImageNet. Names match if they are equal but for case, hyphens and
    underscores. A name that several labels have ("crane") matches in their order if the names that occur once show that
    classes and labels have the same order; one word that is also the first synonym of another label, which no other
    class has ("Cardigan", the sweater or the corgi), fits both. Otherwise the first of the synonyms on one side must be
    among those of the other, in one label only that no other class has a claim to; later synonyms ("panda", "Sus
    scrofa") are often shared.
    """

    def __init__(self, labels: Sequence[str], class_names: Sequence[str] = ()) -> None:
        self._labels = labels
        synsets = imagenet_synsets()
        self._by_wnid = dict(zip(synsets, candidates(list(synsets.values()), labels), strict=True))
        self._by_wnid |= {label: (i,) for i, label in enumerate(labels) if is_wnid(label)}
        self._by_class = candidates(class_names, labels)
        self._by_name: dict[str, tuple[int, ...]] = {}

    def find(self, row: Row) -> int | None:
        """The label of a row; None if the model has none for its class, or if several fit."""
        return _only(self.fitting(row))

    def fitting(self, row: Row) -> tuple[int, ...]:
        """All labels that fit the class of a row."""
        for wnid in (row.wnid, row.label):
            if wnid in self._by_wnid:
                return self._by_wnid[wnid]
        if row.class_id is not None:
            return self._by_class[row.class_id]
        if row.label not in self._by_name:
            (self._by_name[row.label],) = candidates([row.label], self._labels)
        return self._by_name[row.label]


def candidates(names: Sequence[str], labels: Sequence[str]) -> list[tuple[int, ...]]:
    """For each name the places of all labels that it may mean."""
    whole: dict[str, list[int]] = defaultdict(list)
    first: dict[str, set[int]] = defaultdict(set)
    anywhere: dict[str, set[int]] = defaultdict(set)
    for i, label in enumerate(labels):
        parts = _parts(label)
        whole[_plain(label)].append(i)
        first[parts[0]].add(i)
        for part in parts:
            anywhere[part].add(i)
    exact = _exact(list(map(_plain, names)), whole)
    taken = set(exact)
    found: list[tuple[int, ...]] = []
    for name, own in zip(names, exact, strict=True):
        parts = _parts(name)
        if own is not None:
            rivals = first[parts[0]] - taken if len(parts) == 1 else set()
            found.append(tuple(sorted(rivals | {own})))
        else:
            near = anywhere.get(parts[0], set()).union(*(first.get(part, set()) for part in parts)) - taken
            found.append(tuple(sorted(near)))
    claims = Counter(map(_only, found))
    return [() if len(places) == 1 and claims[places[0]] > 1 else places for places in found]


def _exact(names: list[str], whole: dict[str, list[int]]) -> list[int | None]:
    often = Counter(names)
    once = [whole[name][0] if often[name] == 1 and len(whole.get(name, ())) == 1 else None for name in names]
    places = [place for place in once if place is not None]
    same_order = places == sorted(places)
    seen: Counter[str] = Counter()
    found: list[int | None] = []
    for name, place in zip(names, once, strict=True):
        same = whole.get(name, [])
        repeated = same_order and 1 < len(same) == often[name]
        found.append(same[seen[name]] if repeated else place)
        seen[name] += 1
    return found


def _only(places: tuple[int, ...]) -> int | None:
    return places[0] if len(places) == 1 else None


def _parts(text: str) -> list[str]:
    return [_plain(part) for part in text.split(",")]


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]+", " ", text).strip().casefold()
