"""Groups of texts that are near to one another, or to some that are near to others.

Shape suffixes: N texts · P pairs.
"""

from __future__ import annotations

import numpy as np

from instil.data.duplicates.grams import Numbers

TOGETHER = 1 << 18  # texts that are asked about at once


class Groups:
    """Disjoint sets of so many texts, at first one of each; a group is called by its least member.

    Only what is asked about is looked at, so that many small questions cost no more than a large one.
    """

    def __init__(self, count: int) -> None:
        self._above = np.arange(count, dtype=np.int32)  # of a text another of its group, of the least one itself

    def of(self, texts: Numbers) -> Numbers:
        """The names of the groups of these texts."""
        found = self._above[texts]
        while True:
            above = self._above[found]
            if (above == found).all():
                self._above[texts] = found
                return found
            found = above

    def join(self, one_P: Numbers, other_P: Numbers) -> None:
        """Make one group of the groups of each pair."""
        while len(one_P):
            first, second = self.of(one_P), self.of(other_P)
            apart = first != second
            one_P, other_P, first, second = one_P[apart], other_P[apart], first[apart], second[apart]
            np.minimum.at(self._above, np.maximum(first, second), np.minimum(first, second))

    def every(self) -> Numbers:
        """The name of each text's group, [N]; it is not to be changed."""
        for start in range(0, len(self._above), TOGETHER):
            self.of(np.arange(start, min(start + TOGETHER, len(self._above))))
        return self._above
