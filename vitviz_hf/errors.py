"""Errors a user can cause, each with the fix in its text.

VitvizError
├── ModelError (ValueError)             the model cannot be used
│   ├── ModelNotFoundError              no such repository, or it is private
│   ├── GatedModelError                 its terms must be accepted first
│   ├── RevisionError                   no such branch, tag or commit
│   ├── HubUnreachableError             the Hub does not answer and nothing is cached
│   ├── UnsafeModelError                pickled weights or custom code
│   ├── ModelTooLargeError              over the size limit
│   ├── NonFiniteError                  what it gives is NaN or infinite
│   └── NoClassifierError               it cannot name what it sees
├── DatasetError (ValueError)           the dataset cannot be used
│   └── DatasetAccessError              gated, private or missing
├── SiteError (ValueError)              no such layer or kind in this model
│   └── FeatureError                    no such feature at this site
├── ConfigError (ValueError)            contradictory or unknown option
├── ClusterError (RuntimeError)         Ray is missing, does not answer, or loses workers
├── AtlasError (ValueError)             not a usable atlas
├── ImageError (ValueError)             not a usable picture
├── RecipeError (ValueError)            a picture without a usable recipe
├── OutputExistsError (FileExistsError) nothing is overwritten
└── StorageError (OSError)              the disk is full, or a place may not be written
"""


class VitvizError(Exception):
    """Base class: the message says what was given, what is possible and what to do."""

    def __init__(self, text: str = "", owner: str = "", visitor: str = "") -> None:
        """What is wrong, and what to do about it.

        Args:
            text: for everybody.
            owner: what whoever runs the package can do, such as log in; the last part of the message.
            visitor: what a visitor of the app can do instead.
        """
        super().__init__(f"{text} {owner}" if owner else text)
        self.for_visitor = f"{text} {visitor}" if visitor else text


class ModelError(VitvizError, ValueError):
    """The model cannot be used."""


class ModelNotFoundError(ModelError):
    """The repository does not exist or is private."""


class GatedModelError(ModelError):
    """The repository's terms have not been accepted."""


class RevisionError(ModelError):
    """The revision does not exist."""


class HubUnreachableError(ModelError):
    """The Hub does not answer and the model is not in the cache."""


class UnsafeModelError(ModelError):
    """Loading would need pickled weights or the repository's own code."""


class ModelTooLargeError(ModelError):
    """The weights are over the size limit."""


class NonFiniteError(ModelError):
    """What the model gives is NaN or infinite."""


class NoClassifierError(ModelError):
    """The repository has no trained classifier, or no text tower."""


class DatasetError(VitvizError, ValueError):
    """The dataset cannot be used."""


class DatasetAccessError(DatasetError):
    """The dataset is gated, private or missing."""


class SiteError(VitvizError, ValueError):
    """The model has no such layer or kind."""


class FeatureError(SiteError):
    """The site has no such feature."""


class ConfigError(VitvizError, ValueError):
    """An option is unknown or contradicts another."""


class ClusterError(VitvizError, RuntimeError):
    """Ray is not installed, does not answer, or loses its workers."""


class BusyError(VitvizError, RuntimeError):
    """The server has as much to do as it can take on."""


class AtlasError(VitvizError, ValueError):
    """The atlas cannot be read or written."""


class ImageError(VitvizError, ValueError):
    """The picture cannot be used."""


class RecipeError(VitvizError, ValueError):
    """The picture carries no recipe that can be replayed."""


class OutputExistsError(VitvizError, FileExistsError):
    """The output exists already."""


class StorageError(VitvizError, OSError):
    """A file or folder cannot be written."""


def first_line(error: Exception) -> str:
    """What a library's error says, short enough to be quoted."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
