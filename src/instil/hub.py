"""The hub, by its own client: data sets from it, which the client resumes, verifies and keeps, and models to it.

``$HF_ENDPOINT``, ``$HF_HOME`` and ``$HF_TOKEN`` are the client's own. Only what is asked of the network is here: which
files are wanted is decided in `instil.data.files.hub`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


def check_push(repository: str) -> None:
    """Make sure, before a model is written for it, that a repository can be made on the hub.

    Raises:
        NotReached: nobody answered.
        UserError: it is no id, it is there already, or there is no token.
    """
    from huggingface_hub import HfApi, get_token

    with _push_errors(repository):
        if repository.count("/") != 1:
            raise UserError(f"--push {repository}: wanted OWNER/NAME")
        if not get_token():
            raise UserError(f"--push {repository}: the hub wants to know who sends it: hf auth login (or set HF_TOKEN)")
        if HfApi().repo_exists(repository):
            raise UserError(f"--push {repository}: is on the hub already; choose another name")


def push(folder: Path, repository: str, *, public: bool) -> str:
    """Make a repository of models on the hub, with all files of a folder as one commit; returns its address.

    Where the files do not come to lie in it, it is removed again.

    Raises:
        NotReached: nobody answered, or no longer.
        UserError: as `check_push`, or the token may not write there.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _push_errors(repository, "; nothing of it is there, and the folder is kept"):
        address = str(api.create_repo(repository, private=not public, exist_ok=False))
        try:
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload a model tuned with instil")
        except BaseException:
            with suppress(Exception):
                api.delete_repo(repository)
            raise
    return address


@contextmanager
def _push_errors(repository: str, state: str = "") -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except UserError:
        raise
    except errors.HFValidationError as error:
        raise UserError(f"--push {repository}: not an id on the hub; wanted OWNER/NAME") from error
    except Exception as error:  # the client raises whatever its HTTP library raises
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == 409:
            raise UserError(f"--push {repository}: is on the hub already; choose another name") from error
        if status in (401, 403):
            raise UserError(
                f"--push {repository}: the token may not write there; take one with the right to write, or an owner "
                f"that it belongs to{state}"
            ) from error
        reason = str(error).strip().splitlines()
        raise NotReached(
            f"--push {repository}: the hub did not take it ({type(error).__name__}{': ' + reason[0] if reason else ''})"
            f"{state}"
        ) from error


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
