"""What was asked of a room, and whether the answers could be those of one register that takes one thing after the other.

The log is the order, so the check is local: each answer must fit the values at the seq it was decided at, and that seq must lie
between the asking and the answer. Then answers and log together are one history that respects real time: it is linearizable.
"""

from __future__ import annotations

from dataclasses import dataclass

from sharedwidgets.core.protocol import Append, Entry, Inc, Op, Set
from sharedwidgets.core.replica import Pending
from support.plain import Plain

# Refusals that come from what was asked, not from a lock or a right.
CONDITIONS = ("out-of-bounds", "value-mismatch")


@dataclass(eq=False)
class Ask:
    """One push that was asked: how much was decided when it was, and when it was answered."""

    boot: str
    op: Op
    push: Pending
    made: int
    withdrawn: bool = False
    answered: int | None = None
    answer: int | float | str | None = None

    @property
    def open(self) -> bool:
        """Whether an answer is still to come."""
        return not self.withdrawn and self.answered is None

    def hear(self, seq: int) -> None:
        """It is answered, while so much is decided."""
        assert self.open, f"{self.boot} is answered twice on {self.op}"
        self.answered, self.answer = seq, self.now
        refused = self.push.problem is not None
        assert not refused or self.push.value is None, f"{self.op} was refused, and left {self.push.value}"

    @property
    def now(self) -> int | float | str | None:
        """What the author would read of it."""
        return self.push.value if self.push.problem is None else self.push.problem.code


def check(ask: Ask, seq: int, log: list[Entry], history: list[Plain]) -> None:
    """An answer, given the seq at which it was decided: of its entry, or of the room when it was refused."""
    assert ask.answered is not None
    assert ask.answer == ask.now, f"{ask.boot} had the answer {ask.answer} and reads {ask.now}"
    refused = ask.push.problem is not None
    point = seq if refused else seq - 1
    assert ask.made <= point, f"{ask} was decided at {seq}, before it was asked"
    assert seq <= ask.answered, f"{ask} was answered before it was decided at {seq}"
    before = history[point].at(ask.op.state, ask.op.path)
    if refused:
        if ask.answer in CONDITIONS:
            assert not holds(ask.op, before), f"{ask.op} was refused with {ask.answer} where the room held {before!r}"
        else:
            assert ask.answer in ("locked", "lock-lost", "forbidden"), f"{ask.op} was refused with {ask.answer}"
        return
    assert holds(ask.op, before), f"{ask.op} took effect where the room held {before!r}"
    (op,) = log[seq - 1].ops
    after = history[seq].at(ask.op.state, ask.op.path)
    match op:
        case Inc():
            assert ask.answer == op.value == before + op.by, f"{ask.op} on {before} answers {ask.answer}, its entry is {op}"
        case Set(value=int() as value) if not isinstance(value, bool):
            assert ask.answer == value == after, f"{ask.op} answers {ask.answer}"
        case _:
            assert ask.answer is None, f"{ask.op} answers {ask.answer}"
    if isinstance(op, Append):
        assert after == [*before, *op.items]


def holds(op: Op, before: object) -> bool:
    """Whether the condition of an op is met by a value."""
    match op:
        case Inc():
            assert isinstance(before, (int, float))
            total = before + op.by
            return (op.min is None or total >= op.min) and (op.max is None or total <= op.max)
        case Set(if_in=wanted) if wanted is not None:
            return any(type(before) is type(one) and before == one for one in wanted)
        case _:
            return True
