"""A second network asked about the pictures of an atlas, and what it said kept in the atlas."""

from pathlib import Path
from tempfile import TemporaryDirectory

from vitviz_hf.atlas.agreement import Agreement, digest_of, write_agreements
from vitviz_hf.atlas.page import check_model
from vitviz_hf.atlas.store import Atlas
from vitviz_hf.errors import AtlasError
from vitviz_hf.experiments.config import AgreementConfig
from vitviz_hf.experiments.pictures import agreement
from vitviz_hf.experiments.result import Progress
from vitviz_hf.models.view import ModelView
from vitviz_hf.sites import Feature, parse_feature


def judge_atlas(
    view: ModelView, atlas: Atlas, judge: str | None = None, progress: Progress | None = None
) -> dict[Feature, Agreement]:
    """Ask how well the pictures of an atlas tell what their features see, by its own images, and keep the figures.

    Args:
        judge: as in `open_judge`.

    Raises:
        AtlasError: the atlas is of another model, or no picture can be judged.
        ConfigError: it stores too few images, or the judge is the model.
    """
    check_model(view, atlas)
    digests = {f: digest_of(atlas.picture_path(f)) for f in agreement.pictured(view, atlas)}
    if not digests:
        raise AtlasError(
            f"the atlas {atlas.name!r} has no picture that was made without its images; make some with 'vitviz atlas "
            "build'."
        )
    config = AgreementConfig(atlas=str(atlas.folder), judge=judge, features=tuple(digests))
    with TemporaryDirectory() as work:
        result = agreement.run([view], None, config, Path(work), progress)
    name = str(result.manifest["judge"]["model_id"])
    found = {
        parse_feature(row["feature"], None): Agreement(name, row["picture"], row["1 exemplar"])
        for row in result.data["features"].records()
    }
    write_agreements(atlas.agreements, {str(f): (digests[f], one) for f, one in found.items()})
    return found
