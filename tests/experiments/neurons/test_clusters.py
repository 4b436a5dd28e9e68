"""Which patches an object owns, and measures of clusters that mix objects, by hand."""

import numpy as np
import pytest

from vitviz_hf.experiments.neurons.clusters import group_tokens, instances_to_patches


@pytest.mark.parametrize(("rows", "owned"), [(3, False), (4, True)])
def test_an_object_owns_a_patch_from_two_fifths_on(rows, owned):
    mask = np.zeros((40, 40), np.int64)
    mask[:20, :10], mask[10:20, 20:40], mask[20 : 20 + rows, :20] = 1, 2, 2
    mask[:10, 20:40] = 2

    objects = instances_to_patches(mask, (4, 4), min_tokens=2)

    assert objects[1].tolist() == [0, 4]
    assert objects[2].tolist() == [2, 3, 6, 7, *([8, 9] if owned else [])]


def test_clusters_that_mix_objects_are_counted_by_their_commonest():
    one = [(1, 0), (1, 0.1), (1, 0.2)]
    two = [(1, 0.15), (1, 0.05), (0, 1), (0.1, 1), (0.2, 1), (0.05, 1)]

    found = group_tokens(np.array(one + two, float), [np.arange(3), np.arange(3, 9)], ["dog", "cat"])

    assert found.labels.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    steps = [np.linalg.norm(np.diff(np.array(x), axis=0), axis=1).mean() for x in (one, two)]
    assert found.eps == pytest.approx(np.mean(steps))
    measures = {m: found.measures[m] for m in ("purity", "one-to-one", "unique-label rate", "token ratio")}
    assert measures == pytest.approx({"purity": 7 / 9, "one-to-one": 7 / 9, "unique-label rate": 1, "token ratio": 1})
    swapped = group_tokens(np.array(one + two, float), [np.arange(3), np.arange(3, 9)], ["dog", "dog"])
    assert swapped.measures["unique-label rate"] == 1 and swapped.measures["clusters per object"] == 1


def test_an_object_of_exactly_the_least_area_does_not_count():
    mask = np.zeros((8, 8), np.int64)
    mask[:4], mask[4:, :4] = 1, 2

    assert instances_to_patches(mask, (8, 8), min_area=0.25) is None
    assert list(instances_to_patches(mask, (8, 8), min_area=0.2499)) == [1, 2]


def test_where_all_is_noise_there_are_no_clusters_to_measure():
    tokens = np.array([(x, 5.0) for x in (1, 1.1, 3, 100, 100.1, 102)])

    found = group_tokens(tokens, [np.arange(3), np.arange(3, 6)], ["dog", "cat"])

    assert found.eps == pytest.approx(1) and set(found.labels) == {-1}
    none = {"purity", "unique-label rate", "clusters per object", "token ratio", "one-to-one"}
    assert {m for m, v in found.measures.items() if v == 0} == none
    assert found.measures["silhouette"] == found.measures["in-cluster cosine"] == -1
