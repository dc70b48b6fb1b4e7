"""Sending a folder to the Hugging Face Hub and making sure that it arrived as it is here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi
from huggingface_hub.errors import (  # type: ignore[attr-defined] # HTTPError is httpx's or httpx2's, by version
    HfHubHTTPError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.hf_api import RepoFile

from core.errors import InputError, StageError

Result = TypeVar("Result")


class Repository:
    """One model repository. The token is the library's business: HF_TOKEN, or the login saved by `hf auth login`."""

    def __init__(self, name: str) -> None:
        self._api = HfApi(library_name="llm-wizard")
        self.name = name

    def check_login(self) -> str:
        """The name of the account. Raises InputError where nobody is logged in."""
        log_in = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"
        try:
            return str(self._api.whoami()["name"])
        except LocalTokenNotFoundError:
            raise InputError("you are not logged in to the Hugging Face Hub", log_in) from None
        except HfHubHTTPError as error:
            if error.response.status_code in (401, 403):
                raise InputError(
                    "the Hugging Face Hub does not accept the token that is set or saved", log_in
                ) from None
            raise _failed("asking who is logged in", error) from None
        except (HTTPError, OfflineModeIsEnabled) as error:
            raise _failed("asking who is logged in", error) from None

    def create(self, private: bool) -> None:
        """Make the repository, or use the one that exists; `name` becomes its full name.

        Raises:
            InputError: it exists and is public, while `private` is asked for.
        """
        made = _call("making the repository", lambda: self._api.create_repo(self.name, private=private, exist_ok=True))
        self.name = made.repo_id
        if private and not _call("looking at the repository", lambda: self._api.model_info(self.name)).private:
            raise InputError(
                f"{self.name} exists and is public, but the preset says private",
                "set `private: false` to publish to everybody, or choose another `repo`",
            )

    def upload(self, folder: Path, names: list[str], message: str) -> tuple[str, str]:
        """Send the named files in one commit; returns the repository's address and the commit's id."""
        commit = _call(
            "uploading",
            lambda: self._api.upload_folder(
                repo_id=self.name, folder_path=folder, allow_patterns=names, commit_message=message
            ),
        )
        return f"{self._api.endpoint}/{self.name}", str(commit.oid)

    def verify(self, folder: Path, entries: list[dict[str, Any]], commit: str) -> None:
        """Compare size and hash of every file at `commit` with the manifest. Raises StageError for a difference."""
        names = [str(entry["name"]) for entry in entries]
        infos = _call("checking the upload", lambda: self._api.get_paths_info(self.name, names, revision=commit))
        there = {info.path: info for info in infos if isinstance(info, RepoFile)}
        for entry in entries:
            info = there.get(str(entry["name"]))
            if info is None:
                raise StageError(f"{entry['name']} is not in {self.name} after the upload", "publish again: `resume`")
            same = info.lfs.sha256 == entry["sha256"] if info.lfs else info.blob_id == git_blob_id(folder / info.path)
            if info.size != entry["size"] or not same:
                raise StageError(f"{info.path} in {self.name} differs from the file here", "publish again: `resume`")


def git_blob_id(file: Path) -> str:
    """The id by which git, and so the Hub, knows the content of a file that is not in LFS."""
    data = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _call(doing: str, request: Callable[[], Result]) -> Result:
    """The library retries what is worth it; what it gives up on becomes one line and a next step."""
    try:
        return request()
    except (HfHubHTTPError, HTTPError, OfflineModeIsEnabled, OSError) as error:
        raise _failed(doing, error) from None


def _failed(doing: str, error: Exception) -> StageError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return StageError(
        f"{doing} failed: {' '.join(lines[:2]) or type(error).__name__}", "`llm-wizard resume` tries again"
    )
