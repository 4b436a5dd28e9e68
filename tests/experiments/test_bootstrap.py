"""Intervals by drawing again, against what was drawn."""

import numpy as np
import pytest

from vitviz_hf.experiments.bootstrap import bootstrap


def test_an_interval_is_of_2000_draws_of_as_many_with_replacement():
    seen, things = [], np.array([3.0, -1.0, 4.0, 1.0, 5.0])

    def mean(some):
        seen.append(some)
        return float(things[some].mean())

    found = bootstrap(mean, 5, 3)

    draws = [some for some in seen if some.tolist() != [0, 1, 2, 3, 4]]
    assert len(seen) == 2001 and {len(some) for some in seen} == {5} and len(draws) > 1900
    assert sum(len(set(some.tolist())) < 5 for some in draws) > 1800
    assert np.bincount(np.concatenate(draws)) == pytest.approx([len(draws)] * 5, rel=0.1)
    assert found.value == pytest.approx(2.4)
    drawn = np.sort([things[some].mean() for some in seen])
    assert drawn[45] <= found.low <= drawn[55] and drawn[-56] <= found.high <= drawn[-46]
    assert bootstrap(mean, 5, 3) == found != bootstrap(mean, 5, 4)


def test_draws_without_a_value_do_not_count():
    found = bootstrap(lambda some: float(some[0]) if some[0] else float("nan"), 3, 0)

    assert np.isnan(found.value) and (found.low, found.high) == (1, 2)


def test_two_things_are_needed():
    assert bootstrap(lambda some: 1.0, 1, 0) is bootstrap(lambda some: 1.0, 0, 0) is None
    assert bootstrap(lambda some: 1.0, 2, 0) is not None
