"""When each path of a room changed last, as seq: the base against which a splice or a conditional set is checked."""

from __future__ import annotations

from sharedwidgets.core.protocol import Append as AppendOp
from sharedwidgets.core.protocol import Define, Delete, Entry, Inc, Path, Set, Splice


class Revisions:
    """Keeps one number per path that was written, not one per write.

    Parameters
    ----------
    floor : int
        The revision of everything not written since; after a reload from a snapshot that is the snapshot's seq.
    """

    def __init__(self, floor: int = 0) -> None:
        self._floor = floor
        self._paths: dict[tuple[str, str], dict[Path, int]] = {}
        # A deleted key leaves no number of its own behind: the last deletion in a dict stands at the path of that dict.
        self._deleted: dict[tuple[str, str], dict[Path, int]] = {}
        # How long a path of each trait was at most.
        self._deepest: dict[tuple[str, str], int] = {}

    def of(self, state: str, path: Path) -> int:
        """The seq of the last change at a path, above it, or below it."""
        key = (state, path[0])
        known = self._paths.get(key, {})
        related = [seq for other, seq in known.items() if other[: len(path)] == path or path[: len(other)] == other]
        for holder, seq in self._deleted.get(key, {}).items():
            if holder[: len(path)] == path or (path not in known and path[: len(holder)] == holder):
                related.append(seq)
        return max([self._floor, *related])

    def of_state(self, state: str) -> int:
        """The seq of the last change anywhere in a state."""
        numbers = [max(known.values(), default=0) for key, known in self._paths.items() if key[0] == state]
        numbers += [max(gone.values(), default=0) for key, gone in self._deleted.items() if key[0] == state]
        return max([self._floor, *numbers])

    def note(self, entry: Entry) -> None:
        """Take in a decided entry."""
        for op in entry.ops:
            match op:
                case Set() | Delete() | Inc() | AppendOp() | Splice():
                    key = (op.state, op.path[0])
                    known, gone = self._paths.setdefault(key, {}), self._deleted.setdefault(key, {})
                    deepest = self._deepest.get(key, 1)
                    self._deepest[key] = max(deepest, len(op.path))
                    # Only where something deeper was ever written can anything be below; a wide dict is not searched.
                    if isinstance(op, (Set, Delete)) and len(op.path) < deepest:
                        for numbers in (known, gone):
                            for other in [other for other in numbers if other[: len(op.path)] == op.path]:
                                del numbers[other]
                    if isinstance(op, Delete):
                        known.pop(op.path, None)
                        gone[op.path[:-1]] = entry.seq
                    else:
                        known[op.path] = entry.seq
                case Define():
                    for trait in op.schema:
                        self._paths[op.state, trait] = {(trait,): entry.seq}
