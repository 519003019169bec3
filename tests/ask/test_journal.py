"""The journal's file: held by one process at a time, and told apart from a place where no file can be made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from instil.ask.journal import Journal
from instil.errors import DataError, RunFolderTaken


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc here")
def test_a_folder_in_which_no_file_can_be_made_is_told_of() -> None:
    path = Path("/proc/f.journal")
    with (
        pytest.raises(DataError, match=r"^/proc/f\.journal: cannot be written, no file .*; choose another"),
        Journal(path),
    ):
        pass


def test_a_folder_that_may_not_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("who runs this may write everywhere")
    with pytest.raises(DataError, match="cannot be written"), Journal(tmp_path / "f.journal"):
        pass


def test_what_another_holds_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "f.journal"
    with Journal(path):
        with pytest.raises(RunFolderTaken, match="another process is at work there"), Journal(path):
            pass
        assert sorted(file.name for file in tmp_path.iterdir()) == [".f.journal.lock", "f.journal"]
    with Journal(path):
        pass
