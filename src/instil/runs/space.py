"""What a run takes on disk, and giving back what its checkpoints take of it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from instil.files import unfinished_of
from instil.runs.checkpoints import BEST, Checkpoints
from instil.runs.folder import RunFolder
from instil.runs.kept import forget_kept


def bytes_in(folder: Path) -> int:
    """Bytes of the files below a folder; what a link leads to is not counted, nor what cannot be looked at.

    A file that has two names there counts once.
    """
    total, seen, left = 0, set(), [str(folder)]
    while left:
        try:
            with os.scandir(left.pop()) as entries:
                for entry in entries:
                    try:
                        about = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue  # gone since
                    if stat.S_ISDIR(about.st_mode):
                        left.append(entry.path)
                    elif stat.S_ISREG(about.st_mode) and (about.st_dev, about.st_ino) not in seen:
                        total += about.st_size
                        if about.st_nlink > 1:
                            seen.add((about.st_dev, about.st_ino))
        except OSError:
            continue
    return total


def checkpoint_bytes(run: RunFolder) -> int:
    """Bytes of the checkpoints of a run, and of what is left of others."""
    return 0 if run.checkpoints.is_symlink() else bytes_in(run.checkpoints)


def remove_checkpoints(run: RunFolder) -> int:
    """Remove the checkpoints of a run that does not train, with what is left of others; how many bytes are freed.

    What else lies beside them stays, and nothing is removed where their folder is a link.

    Raises:
        OSError: something cannot be removed; what was removed before is gone.
    """
    if run.checkpoints.is_symlink():
        return 0
    before = bytes_in(run.checkpoints)
    Checkpoints(run.checkpoints).clear()
    forget_kept(run)
    for file in (run.checkpoints / BEST, unfinished_of(run.checkpoints / BEST)):
        file.unlink(missing_ok=True)
    return before - bytes_in(run.checkpoints)
