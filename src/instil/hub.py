"""Data sets on the hub, by its own client, which resumes, verifies and keeps what it fetches.

``$HF_ENDPOINT``, ``$HF_HOME`` and ``$HF_TOKEN`` are the client's own. Only what is asked of the network is here: which
files are wanted is decided in `instil.data.files.hub`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from instil.errors import UserError


class NotReached(UserError):
    """The hub did not answer; what was fetched before may do."""


def hub_listing(repository: str, revision: str | None) -> tuple[str, list[str]]:
    """The commit that a revision of a data set is, and the names of its files.

    Raises:
        NotReached: nobody answered.
        UserError: there is no such data set or revision, or it may not be read.
    """
    from huggingface_hub import HfApi

    with _hub_errors(f"{repository}{'@' + revision if revision else ''}"):
        found = HfApi().dataset_info(repository, revision=revision)
    return str(found.sha), sorted(sibling.rfilename for sibling in found.siblings or ())


def hub_file(repository: str, file: str, commit: str) -> Path:
    """The local copy of one file of a data set; raises as `hub_listing`."""
    from huggingface_hub import hf_hub_download

    with _hub_errors(f"{repository}/{file}"):
        return Path(hf_hub_download(repository, file, repo_type="dataset", revision=commit))


def hub_card(readme: Path) -> dict[str, Any]:
    """The metadata at the top of a data set's README; raises ValueError if it cannot be read."""
    from huggingface_hub import metadata_load

    try:
        return dict(metadata_load(readme) or {})
    except Exception as error:  # whatever the library's parser of YAML raises
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0]) from error


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise UserError(f"hf:{what}: not the id of a data set on the hub; wanted hf:owner/name") from error
    except errors.GatedRepoError as error:
        raise UserError(
            f"hf:{what}: its owner wants to be asked first: accept the terms on the data set's page, then "
            "hf auth login (or set HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"hf:{what}: the data set has no such revision; wanted a branch, a tag or a commit") from error
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError) as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise NotReached(f"hf:{what}: the hub did not answer, and there is no copy of it here") from error
        raise UserError(
            f"hf:{what}: not on the hub, or not for everybody; if it is private: hf auth login (or set HF_TOKEN)"
        ) from error
    except Exception as error:  # the client raises whatever its HTTP library raises
        reason = str(error).strip().splitlines()
        raise NotReached(
            f"hf:{what}: could not be fetched from the hub ({type(error).__name__}{': ' + reason[0] if reason else ''})"
        ) from error
