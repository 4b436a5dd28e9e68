"""Models that can name what they see: by their own labels, or by words."""

from collections.abc import Sequence
from dataclasses import replace

from vitviz_hf.errors import NoClassifierError
from vitviz_hf.experiments.accuracy.labels import LabelMatcher
from vitviz_hf.models.loading import imagenet_synsets
from vitviz_hf.models.view import ModelView
from vitviz_hf.reading.classification import (
    ZeroShot,
    as_classifier,
    imagenet_labels,
    imagenet_templates,
    load_zero_shot,
)
from vitviz_hf.stream import Row, Source

TEMPLATE = "a photo of a {}."


def check_classifiers(views: Sequence[ModelView]) -> None:
    """Raise unless every model has a trained classifier.

    Raises:
        NoClassifierError: one has none.
    """
    for view in views:
        if view.labels is None:
            raise NoClassifierError(
                f"{view.model_id!r} has no trained classifier. Choose a checkpoint with one.", "'vitviz models' tells."
            )


def as_classifiers(views: Sequence[ModelView], source: Source) -> list[ModelView]:
    """The models, those without a classifier as zero-shot ones over the dataset's classes.

    If all classes are ImageNet's, or the dataset does not name them, the texts are the names and the 80 templates that
    CLIP was tested with, else the dataset's names in 'a photo of a {}.'. Labels stay those of ImageNet or the dataset.

    Raises:
        NoClassifierError: a model has neither a trained classifier nor a text tower.
        ModelError: no usable tokenizer.
    """
    return [view if view.labels is not None else _by_words(view, source) for view in views]


def _by_words(view: ModelView, source: Source) -> ModelView:
    labels: Sequence[str] = tuple(imagenet_synsets().values())
    places = find_places(labels, source.class_names) or list(range(len(labels)))
    known = [place for place in places if place is not None]
    if len(known) == len(places):
        curated = imagenet_labels()
        labels, texts, templates = [labels[i] for i in known], [curated[i] for i in known], imagenet_templates()
    else:
        labels, templates = source.class_names, (TEMPLATE,)
        texts = [name.replace("_", " ") for name in labels]
    try:
        words = load_zero_shot(view, texts, templates)
    except NoClassifierError as error:
        raise NoClassifierError(
            f"{view.model_id!r} has no trained classifier and no text tower. Choose a checkpoint with one of them.",
            "'vitviz models' tells.",
        ) from error
    return replace(as_classifier(view, words), labels=tuple(labels))


def zero_shot_note(view: ModelView) -> list[str]:
    """How a model without a classifier chooses, for the notes of a table."""
    words = view.head
    if not isinstance(words, ZeroShot):
        return []
    if words.templates == imagenet_templates():
        how = f"{len(words.labels):,} of ImageNet's classes by the names and the 80 templates that CLIP was tested with"
    else:
        how = f"the {len(words.labels):,} class names of the dataset in {', '.join(map(repr, words.templates))}"
    return [f"{view.model_id} has no classifier and is used zero-shot: it chooses among {how}."]


def find_places(labels: Sequence[str], class_names: Sequence[str]) -> list[int | None]:
    """For each class of a dataset its label."""
    matcher = LabelMatcher(labels, class_names)
    return [matcher.find(Row("", name, b"", i)) for i, name in enumerate(class_names)]
