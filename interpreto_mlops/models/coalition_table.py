"""What was read from the model for rows of token ids, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict

from interpreto_mlops.models.requests import Floats

_ROW_BYTES = 400  # a row's key, its array's header and its places in the dictionaries
TABLE_BYTES = 2**28


class CoalitionTable:
    """What was read for rows, by their keys; those used longest ago go first when it is full.

    A row belongs to the program that asked for it, and goes with it; a row that a second program asks for belongs to
    nobody and stays.

    Arguments:
        most_bytes: how large the table may become: 256 MB are some 600,000 rows of a classifier.
        keeps: whether rows stay when their program ends.
    """

    def __init__(self, most_bytes: int = TABLE_BYTES, *, keeps: bool = False) -> None:
        self.most_bytes, self.keeps = most_bytes, keeps
        self.nbytes = 0
        self._rows: OrderedDict[bytes, Floats] = OrderedDict()
        self._owners: dict[bytes, object] = {}
        self._owned: dict[object, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: bytes, owner: object) -> Floats | None:
        """Return what was read for a row, shape (width,), or None when it is not known."""
        value = self._rows.get(key)
        if value is not None:
            self._rows.move_to_end(key)
            if self._owners.get(key, owner) is not owner:
                self._disown(key)
        return value

    def put(self, key: bytes, value: Floats, owner: object | None) -> None:
        """Remember what was read for a row, shape (width,); without an owner it stays."""
        if key in self._rows:
            self._remove(key)
        self._rows[key] = value
        self.nbytes += value.nbytes + _ROW_BYTES
        if owner is not None and not self.keeps:
            self._owners[key] = owner
            self._owned.setdefault(owner, set()).add(key)
        while self.nbytes > self.most_bytes and self._rows:
            self._remove(next(iter(self._rows)))

    def drop(self, owner: object) -> None:
        """Forget the rows of a program that has ended."""
        for key in list(self._owned.get(owner, ())):
            self._remove(key)

    def _remove(self, key: bytes) -> None:
        self._disown(key)
        self.nbytes -= self._rows.pop(key).nbytes + _ROW_BYTES

    def _disown(self, key: bytes) -> None:
        if (owner := self._owners.pop(key, None)) is not None:
            keys = self._owned[owner]
            keys.discard(key)
            if not keys:
                del self._owned[owner]
