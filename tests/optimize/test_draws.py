"""Numbers drawn ahead are those of the generator, in its order."""

import torch

from vitviz_hf.optimize.draws import Ahead, draw, drawing, turn

STEP = [(torch.randn, (2, 3)), (torch.randint, 0, 9, (4,)), (torch.rand, 5)]


def seeded(n):
    return [torch.Generator().manual_seed(i) for i in range(n)]


def steps_of(sources, n):
    found = []
    for _ in range(n):
        found.append([[draw(source, *call) for call in STEP] for source in sources])
        turn(sources)
    return found


def test_numbers_drawn_ahead_are_those_of_the_generator_alone():
    expected = steps_of(seeded(3), 4)

    with drawing(seeded(3), torch.device("meta")) as sources:
        found = steps_of(sources, 4)

    assert all(isinstance(source, Ahead) for source in sources)
    for ours, alone in zip(found, expected, strict=True):
        for a, b in zip(ours, alone, strict=True):
            assert all(map(torch.equal, a, b))


def test_the_next_step_is_drawn_while_this_one_is_computed():
    (generator,) = seeded(1)
    with drawing([generator], torch.device("meta")) as sources:
        steps_of(sources, 2)

    after = generator.get_state()  # the threads have ended
    other = seeded(1)
    steps_of(other, 3)
    assert torch.equal(after, other[0].get_state())


def test_a_cpu_that_computes_itself_draws_when_it_needs():
    generators = seeded(2)

    with drawing(generators, torch.device("cpu")) as sources:
        assert sources is generators
