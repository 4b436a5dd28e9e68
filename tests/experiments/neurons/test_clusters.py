"""Which patches an object owns, and measures of clusters that mix objects, by hand."""

import numpy as np
import pytest
import torch

from vitviz_hf.experiments.neurons.clusters import embed_tokens, group_tokens, instances_to_patches


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


def test_objects_that_are_too_small_do_not_count():
    mask = np.zeros((224, 224), np.int64)
    mask[:112, :112] = 1
    for n_pixels, counts in [(983, False), (984, True)]:
        mask[112:] = 0
        mask[112:160, :48].flat[:n_pixels] = 2
        assert (instances_to_patches(mask, (14, 14)) is not None) == counts
    mask[112:] = 0
    mask[112:128, 0:32], mask[128:140, 32:80] = 2, 2  # large enough, but two whole patches and three nearly whole
    assert instances_to_patches(mask, (14, 14))[2].tolist() == [98, 99, 114, 115, 116]
    mask[128:140] = 0
    assert instances_to_patches(mask, (14, 14), 0.005) is None


def test_a_patch_of_two_objects_belongs_to_the_larger_part():
    mask = np.zeros((32, 64), np.int64)
    mask[:, :19], mask[:, 19:] = 1, 2

    objects = instances_to_patches(mask, (4, 8), cover=0.2)

    assert 2 in objects[2] and 2 not in objects[1] and objects[1].tolist() == [0, 1, 8, 9, 16, 17, 24, 25]


def test_the_worked_example():
    tokens = np.array([(10, 0), (10, 1), (10, 2), (10, 3), (0, 10), (1, 10), (2, 10), (30, 10)], float)

    found = group_tokens(tokens, [np.arange(4), np.arange(4, 8)], ["a", "b"])

    assert found.eps == 5.5 and found.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, -1]
    assert found.measures == pytest.approx(
        {
            "silhouette": 0.98236,
            "purity": 0.875,
            "in-cluster cosine": 0.98730,
            "in-object cosine": 0.84152,
            "unique-label rate": 1,
            "clusters per object": 1,
            "token ratio": 0.875,
            "one-to-one": 0.875,
            "between-object cosine": found.measures["between-object cosine"],
        },
        abs=5e-6,
    )
    same = group_tokens(tokens, [np.arange(4), np.arange(4, 8)], ["a", "a"])
    assert same.measures["unique-label rate"] == 1


def test_noise_and_one_cluster_have_their_own_values():
    far = np.array([(0, 1), (100, 3), (0, 1e3), (5e3, 1), (5e3, 1.1), (5e3, 1.2)], float)
    one = group_tokens(far, [np.array([3, 4, 5]), np.array([0, 1, 2])], ["a", "b"])
    apart = 10.0 ** np.arange(6)[:, None] * np.array([[1.0, 2.0]])
    none = group_tokens(apart, [np.array([5, 0, 4]), np.array([1, 3, 2])], ["a", "b"])

    assert one.labels.max() == 0 and one.measures["silhouette"] == 0
    if none.labels.max() < 0:
        values = none.measures
        assert (values["purity"], values["in-cluster cosine"], values["silhouette"]) == (0, -1, -1)
        assert values["unique-label rate"] == values["clusters per object"] == 0


def test_embedding_in_the_plane_is_repeatable(generator):
    tokens = torch.randn(20, 8, generator=generator).numpy()

    assert embed_tokens(tokens, 1).shape == (20, 2)
    assert np.array_equal(embed_tokens(tokens, 1), embed_tokens(tokens, 1))
