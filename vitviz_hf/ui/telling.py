"""What is said of pictures as they grow and when they are made."""

import html

from vitviz_hf.optimize.recipe import Visualization
from vitviz_hf.ui.growing import Frame, Grown
from vitviz_hf.ui.lane import Waiting

Before = Waiting | tuple[int, int]
"""What comes before the frames of a run: how it waits, then how many of how many real images it has read."""


def before_it(moment: Before) -> str:
    """What is said of it."""
    if isinstance(moment, Waiting):
        return str(moment)
    return f"Looking for what excites it in the built-in photographs: {moment[0]} of {moment[1]}."


def picture_label(frame: Frame, grown: Grown) -> str:
    """What is written over a picture; over several, which are small, not what guides them all."""
    several = len(frame.pictures) > 1
    what, guided = f"Seed {grown.seed}" if several else "Optimized picture", None if several else frame.guided
    told = ", ".join(filter(None, (frame.classes, guided.told if guided else "")))
    return f"{what}: {told}" if told else what


def result_of(grown: Grown) -> Visualization:
    """Of a picture at its end."""
    assert grown.result is not None
    return grown.result


def summary(frame: Frame) -> str:
    """What came of a run that is at its end."""
    results = [result_of(grown) for grown in frame.pictures]
    after, named = frame.index + 1, f" ({html.escape(frame.classes)})" if frame.classes else ""
    steps = f"{after} of {frame.steps}" if after < frame.steps else str(after)
    text = f"**{results[0].recipe['address']}**{named} after {steps} steps: "
    text += "; ".join(
        (f"seed {grown.seed} " if len(results) > 1 else "")
        + f"score {result.score:.3g}; {result.transfer_score:.3g} when the picture is turned, zoomed and blurred"
        for grown, result in zip(frame.pictures, results, strict=True)
    )
    text += "."
    if frame.guided:
        told = html.escape(frame.guided.told)
        text += f" {told[0].upper()}{told[1:]}."
    if frame.photograph:
        name, best = frame.photograph
        text += f" The best of the built-in photographs, {name.replace('_', ' ')}, has {best:.3g}."
    silent = [str(grown.seed) for grown, result in zip(frame.pictures, results, strict=True) if not result.alive]
    if silent:
        which = f"seed {', '.join(silent)}" if len(results) > 1 else "it"
        text += f" The feature does not fire on {which}{' yet' if after < frame.steps else ''}."
    return text
