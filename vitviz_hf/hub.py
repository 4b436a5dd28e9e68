"""Every call to the Hub, and the one table of what it may answer.

Models, datasets and atlases are asked for by these functions, and each tells its failure in its own class of errors
(`MODEL`, `DATASET`, `ATLAS`) with the same words.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import httpx2
from huggingface_hub import DatasetCard, DatasetCardData, HfApi, constants, scan_cache_dir, snapshot_download
from huggingface_hub.errors import (
    CacheNotFound,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from vitviz_hf.errors import (
    AtlasError,
    DatasetAccessError,
    DatasetError,
    GatedModelError,
    HubUnreachableError,
    ModelNotFoundError,
    RevisionError,
    StorageError,
    VitvizError,
    first_line,
)

Token = str | bool | None
"""Of the Hub: None uses the machine's login, False asks anonymously even where there is one."""
INVALID = StrictDataclassError
"""What transformers raises on a value of config.json that is not of its kind."""
TOO_LARGE = ("Raise it with the environment variable VITVIZ_MAX_GB.", "Choose a smaller one.")
"""What the owner and a visitor can do about a repository over the size limit."""
# Hidden files are what a writer that was killed left.
_VISIBLE: Mapping[str, Any] = {"ignore_patterns": [".*", "**/.*"]}
_PROBE_SECONDS, _PROBE_AGAIN_SECONDS, _TIMEOUT = 3.0, 30.0, 10.0


@dataclass(frozen=True, slots=True)
class Repositories:
    """Repositories of one use, and the error for each answer of the Hub that gives nothing."""

    kind: Literal["model", "dataset"]
    gated: type[VitvizError]
    missing: type[VitvizError]
    revision: type[VitvizError]
    failed: type[VitvizError]


MODEL = Repositories("model", GatedModelError, ModelNotFoundError, RevisionError, HubUnreachableError)
DATASET = Repositories("dataset", DatasetAccessError, DatasetAccessError, DatasetAccessError, DatasetError)
ATLAS = Repositories("dataset", AtlasError, AtlasError, AtlasError, AtlasError)


@dataclass(frozen=True, slots=True)
class Listing:
    """What a repository holds at one commit."""

    sha: str
    sizes: Mapping[str, int]
    """File -> bytes."""


def on_space() -> bool:
    """Whether this runs on a Space, where who asks is a stranger."""
    return os.environ.get("SYSTEM") == "spaces" and bool(os.environ.get("SPACE_ID"))


def visitors_sign_in() -> bool:
    """Whether this is a Space whose visitors sign in, with what gradio needs for that (its extra `oauth`)."""
    has_extra = find_spec("itsdangerous") and find_spec("authlib")
    return bool(on_space() and os.environ.get("OAUTH_CLIENT_ID") and has_extra)


def gated_error(of: Repositories, name: str, shown: str) -> VitvizError:
    """That a repository is gated, with what the owner and a visitor can do about it."""
    error = of.gated(
        f"{shown} is gated.",
        "Accept its terms on the Hub, then run 'hf auth login'.",
        "Only what is open to everybody can be read here; choose another one.",
    )
    if visitors_sign_in():
        page = f"{constants.ENDPOINT}/{'datasets/' * (of.kind == 'dataset')}{name}"
        error.for_visitor = f"{shown} is gated: ask for access at {page}, or sign in with an account that has it."
    return error


@contextmanager
def hub_errors(of: Repositories, name: str, revision: str | None = None) -> Iterator[None]:
    """Say why the Hub gave nothing, in the errors of `of`."""
    shown = f"{name!r:.300}" + (f" at {revision!r:.100}" if revision else "")
    try:
        yield
    except GatedRepoError as error:
        raise gated_error(of, name, shown) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise of.missing(
            f"{shown} is not on the Hub, or it is private.",
            "Check the spelling; what is private needs a token.",
            "Check the spelling, or sign in with an account that may read it."
            if visitors_sign_in()
            else "Check the spelling; only what is public can be read here.",
        ) from error
    except RevisionNotFoundError as error:
        raise of.revision(f"{name!r} has no revision {revision!r:.100}; give a branch, tag or commit.") from error
    except VitvizError:
        raise
    # What is not in the cache is a FileNotFoundError of the library, a name that no file may have a ValueError.
    except (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT):
            raise StorageError(
                f"{shown} cannot be stored: {error.strerror}.", f"Make room at '{constants.HF_HUB_CACHE}'."
            ) from error
        raise of.failed(f"the Hub failed at {shown} ({first_line(error)}). Try again later.") from error


def find_path(text: str) -> Path | None:
    """The file or folder that a text names; None if it names none, or nothing that a path can be."""
    try:
        path = Path(text).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long, nobody's home, null bytes
        return None


def is_hub_id(text: str) -> bool:
    """Whether the text has the form of a Hub repository id."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def hub_reachable() -> bool:
    """Whether the Hub answers at all, asked with a short time-out and remembered for up to half a minute."""
    return not constants.HF_HUB_OFFLINE and _probe(constants.ENDPOINT, int(time.monotonic() / _PROBE_AGAIN_SECONDS))


@lru_cache(maxsize=4)
def _probe(endpoint: str, period: int) -> bool:
    """Whether an endpoint answers; asked once in a period."""
    try:
        httpx2.head(endpoint, timeout=_PROBE_SECONDS)
    except httpx2.HTTPError:
        return False
    return True


def size_limit() -> int:
    """Largest accepted download in bytes: `VITVIZ_MAX_GB` (default 6)."""
    return int(float(os.environ.get("VITVIZ_MAX_GB", "6")) * 1e9)


def list_files(of: Repositories, repo_id: str, revision: str | None = None, token: Token = None) -> Listing:
    """The commit that a revision is at, and its files, for who may read them.

    Raises:
        VitvizError: of the classes of `of`.
    """
    info = _info(of, repo_id, revision, token, files_metadata=True)
    return Listing(str(info.sha), {s.rfilename: s.size or 0 for s in info.siblings or ()})


def find_commit(of: Repositories, repo_id: str, token: Token = None) -> str:
    """The newest commit, for who may read it.

    Raises:
        VitvizError: of the classes of `of`; also if the card of a dataset names files on other hosts.
    """
    info = _info(of, repo_id, None, token)
    card = getattr(info, "card_data", None)
    for text in _texts(card.to_dict().get("configs") if card else None):
        if "://" in text and not text.startswith("hf://"):
            raise of.failed(f"{repo_id!r} has its files elsewhere ({text!r:.100}); only those on the Hub are read.")
    return str(info.sha)


def _info(of: Repositories, repo_id: str, revision: str | None, token: Token, **options: Any) -> Any:
    """What the Hub tells of a repository to who may read its files.

    Of a gated one it tells everybody, and its files may lie on the disk since somebody else asked for them.
    """
    with hub_errors(of, repo_id, revision):
        ask = HfApi().model_info if of.kind == "model" else HfApi().dataset_info
        try:
            info = ask(repo_id, revision=revision, timeout=_TIMEOUT, token=token, **options)
        except RepositoryNotFoundError:
            if _cached_at(of, repo_id).is_dir():  # private since, or brought by a login
                _remember(of, repo_id, True, token)
            raise
        _remember(of, repo_id, bool(info.gated or info.private), token)
        if info.gated:
            try:
                HfApi().auth_check(repo_id, repo_type=of.kind, token=token)
            except RepositoryNotFoundError as error:
                raise gated_error(of, repo_id, repr(repo_id)) from error
    return info


def _texts(value: Any) -> Iterator[str]:
    """Every text in nested dictionaries and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def find_tagged(of: Repositories, tags: Sequence[str], n: int, token: Token = None) -> list[str]:
    """Ids of at most n repositories of datasets that have all the tags.

    Raises:
        VitvizError: of the classes of `of`.
    """
    with hub_errors(of, " ".join(tags)):
        if not hub_reachable():
            raise ConnectionError("it cannot be reached")
        return [str(info.id) for info in HfApi().list_datasets(filter=list(tags), limit=n, token=token)]


def download(of: Repositories, repo_id: str, sha: str, patterns: Sequence[str], token: Token = None) -> Path:
    """Folder with the files of a commit that fit the patterns.

    Raises:
        VitvizError: of the classes of `of`.
    """
    cache = _cache(of, repo_id, token)
    options: dict[str, Any] = {"repo_type": of.kind, "allow_patterns": list(patterns), "cache_dir": cache}
    with hub_errors(of, repo_id):
        return Path(snapshot_download(repo_id, revision=sha, token=token, **options))


def is_closed(of: Repositories, repo_id: str) -> bool:
    """Whether a repository was gated or private when the Hub was last asked for it, in this process or before."""
    return _cached_at(of, repo_id, "-closed").exists()


def _remember(of: Repositories, repo_id: str, closed: bool, token: Token) -> None:
    """Keep beside the cache, whose files do not tell it, whether a repository is closed."""
    mark = _cached_at(of, repo_id, "-closed")
    try:
        if not closed:
            mark.unlink(missing_ok=True)
        elif not mark.exists():
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
    except OSError:
        if isinstance(token, str):  # what it brings would lie with what is open
            raise


def _cached_at(of: Repositories, repo_id: str, beside: str = "") -> Path:
    return Path(f"{constants.HF_HUB_CACHE}{beside}", repo_folder_name(repo_id=repo_id, repo_type=of.kind))


def _cache(of: Repositories, repo_id: str, token: Token) -> str | None:
    """Where downloads lie: what a given token opened, apart, so that who asks without it finds none of it."""
    return f"{constants.HF_HUB_CACHE}-by-token" if isinstance(token, str) and is_closed(of, repo_id) else None


def find_cached(of: Repositories, repo_id: str, revision: str | None, file: str, token: Token = None) -> Path | None:
    """Folder of a downloaded commit that has the file: that of the revision, else the newest; None if there is none.

    Downloads are pinned to commits here, which leaves no reference for a branch.
    """
    try:
        repos = scan_cache_dir(_cache(of, repo_id, token)).repos
    except CacheNotFound:
        return None
    known = [r for repo in repos if (repo.repo_type, repo.repo_id) == (of.kind, repo_id) for r in repo.revisions]
    named = [r for r in known if (revision or "main") in r.refs] or [
        r for r in known if revision in (None, r.commit_hash)
    ]
    complete = [r for r in named if (r.snapshot_path / file).is_file()]
    return max(complete, key=lambda r: r.last_modified).snapshot_path if complete else None


def write_card(text: str, metadata: Mapping[str, Any]) -> str:
    """README.md of a dataset repository, with what the Hub reads of it; None is left out."""
    return str(DatasetCard(f"---\n{DatasetCardData(**metadata).to_yaml()}\n---\n\n{text}"))


def upload_folder(of: Repositories, folder: Path, repo_id: str, message: str, private: bool, token: Token) -> str:
    """Make a repository, unless there is one, and upload a folder; returns its address.

    Raises:
        VitvizError: not logged in, no permission, or the Hub failed.
    """
    try:
        api = HfApi(token=token)
        url = api.create_repo(repo_id, repo_type=of.kind, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, repo_type=of.kind, folder_path=folder, commit_message=message, **_VISIBLE)
    except (HFValidationError, LocalTokenNotFoundError) as error:
        raise of.failed(f"{repo_id!r} cannot be written: {first_line(error)}") from error
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise of.failed(
                f"this login may not write {repo_id!r}.",
                "Run 'hf auth login' with a token that can write there, or choose another name.",
                "Sign in again and allow writing, or choose a name of your own account.",
            ) from error
        raise of.failed(f"the Hub refused {repo_id!r} ({first_line(error)}).") from error
    except (httpx2.HTTPError, OSError) as error:
        raise of.failed(f"the Hub failed at {repo_id!r} ({first_line(error)}). Try again later.") from error
    return str(url)
