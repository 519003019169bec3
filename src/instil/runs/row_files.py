"""What a run's folder says of its rows: which went where, what they are, which are nearly the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from instil.data.leaks import Leaks
from instil.data.near_duplicates import Near
from instil.data.splits import PARTS, rows_in
from instil.errors import DataError
from instil.files import read_json, write_json, write_rows


@dataclass(frozen=True, slots=True)
class RowFiles:
    """``split.json``, ``data.json`` and ``rejected.jsonl`` of a folder."""

    path: Path

    @property
    def rejected(self) -> Path:
        """Rows that were left out or cut, one a line."""
        return self.path / "rejected.jsonl"

    def read_split(self) -> dict[str, list[int]]:
        """Row numbers of each part, from ``split.json``.

        Raises:
            DataError: the file is absent or damaged.
        """
        file = self.path / "split.json"
        found = read_json(file)
        numbers = {part: rows_in(found.get(part) if isinstance(found, dict) else None) for part in PARTS}
        known = {part: rows for part, rows in numbers.items() if rows is not None}
        if len(known) < len(PARTS):
            raise DataError(f"{file}: damaged, wanted the row numbers of {', '.join(PARTS)}")
        return {str(part): rows for part, rows in known.items()}

    def write_split(
        self, rows: Mapping[str, object], leaks: Leaks, answered: str, numbers: Sequence[int] | None = None
    ) -> None:
        """Write ``split.json``; the near-duplicates of the part that is ``answered`` stand apart from others.

        ``numbers`` are those of its rows that are answered where that is not all of them.
        """
        near = [asdict(one) for one in leaks.of(answered)]
        others = [leak for leak in leaks.found if leak.part != answered]
        more = {"near_duplicates_not_answered": [asdict(leak.near) for leak in others]} if others else {}
        dropped = {"dropped": [{"row": row, "reason": why} for row, why in leaks.dropped]} if leaks.dropped else {}
        some = {} if numbers is None else {"answered": list(numbers)}
        self.write_json("split.json", {**rows, **some, "near_duplicates": near, **more, **dropped})

    def write_data(self, card: Mapping[str, object], rejected: Sequence[Mapping[str, object]]) -> None:
        """Write ``data.json`` and ``rejected.jsonl``."""
        self.write_json("data.json", card)
        write_rows(self.rejected, rejected)

    def read_card(self) -> dict[str, Any] | None:
        """``data.json``; None for a run of an earlier version, which has none.

        Raises:
            DataError: it is damaged.
        """
        file = self.path / "data.json"
        if not file.is_file():
            return None
        found = read_json(file)
        if not isinstance(found, dict):
            raise DataError(f"{file}: damaged, wanted an object")
        return found

    def read_leaks(self) -> list[Near] | None:
        """Held-out rows nearly the same as a training row; None where the run did not look for them.

        Raises:
            DataError: the file is absent or damaged.
        """
        file = self.path / "split.json"
        found = read_json(file)
        if not isinstance(found, dict) or "near_duplicates" not in found:
            return None
        try:
            return [
                Near(int(one["row"]), int(one["train_row"]), float(one["cosine"])) for one in found["near_duplicates"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{file}: damaged, its near-duplicates cannot be read") from error

    def held_out_rows(self) -> list[int]:
        """Numbers of the rows that the run answered before and after.

        Raises:
            DataError: ``split.json`` is absent or damaged.
        """
        split, file = self.read_split(), self.path / "split.json"
        found = read_json(file)
        if "answered" not in found:
            return split["test"] or split["validation"]
        answered = rows_in(found["answered"])
        if answered is None:
            raise DataError(f"{file}: damaged, wanted the numbers of the rows that are answered")
        return answered

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the folder, readable by people; a folder in it that is gone is made again."""
        (self.path / name).parent.mkdir(exist_ok=True)
        write_json(self.path / name, value)
