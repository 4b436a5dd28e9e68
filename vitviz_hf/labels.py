"""Finding a dataset's classes among a model's labels, by WordNet id or by name."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from vitviz_hf.loading import imagenet_synsets
from vitviz_hf.stream import Row, is_wnid


class LabelMatcher:
    """Places of a dataset's classes among a model's labels.

    A WordNet id is looked up under its name in ImageNet. Names match if they are equal but for case, hyphens and
    underscores; names that occur several times ("crane") match in their order. Otherwise the first of the synonyms on
    one side must be among those of the other, in one label only that no other class has a claim to; later synonyms
    ("panda", "Sus scrofa") are often shared.
    """

    def __init__(self, labels: Sequence[str], class_names: Sequence[str] = ()) -> None:
        self._labels = labels
        synsets = imagenet_synsets()
        self._by_wnid = dict(zip(synsets, match_names(list(synsets.values()), labels), strict=True))
        self._by_wnid |= {label: i for i, label in enumerate(labels) if is_wnid(label)}
        self._by_class = match_names(class_names, labels)
        self._by_name: dict[str, int | None] = {}

    def find(self, row: Row) -> int | None:
        """The label of a row, or None if the model has none for its class."""
        if row.wnid in self._by_wnid:
            return self._by_wnid[row.wnid]
        if row.class_id is not None:
            return self._by_class[row.class_id]
        if row.label not in self._by_name:
            self._by_name[row.label] = match_names([row.label], self._labels)[0]
        return self._by_name[row.label]


def match_names(names: Sequence[str], labels: Sequence[str]) -> list[int | None]:
    """For each name its place among the labels, or None; the rules stand at `LabelMatcher`."""
    whole: dict[str, list[int]] = defaultdict(list)
    first: dict[str, set[int]] = defaultdict(set)
    anywhere: dict[str, set[int]] = defaultdict(set)
    for i, label in enumerate(labels):
        parts = _parts(label)
        whole[_plain(label)].append(i)
        first[parts[0]].add(i)
        for part in parts:
            anywhere[part].add(i)
    often = Counter(map(_plain, names))
    seen: Counter[str] = Counter()
    exact: list[int | None] = []
    for plain in map(_plain, names):
        same = whole.get(plain, [])
        exact.append(same[seen[plain]] if len(same) == often[plain] else None)
        seen[plain] += 1
    taken = set(exact)
    alike: list[int | None] = []
    for name in names:
        parts = _parts(name)
        near = anywhere.get(parts[0], set()).union(*(first.get(part, set()) for part in parts)) - taken
        alike.append(near.pop() if len(near) == 1 else None)
    claims = Counter(alike)
    return [a if e is None and claims[a] == 1 else e for e, a in zip(exact, alike, strict=True)]


def _parts(text: str) -> list[str]:
    return [_plain(part) for part in text.split(",")]


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]+", " ", text).strip().casefold()
