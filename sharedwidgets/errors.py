"""Every exception this project raises, as one tree; each has a wire ``code``.

::

    SharedWidgetsError                     internal
    ├── InvalidValue (ValueError)          invalid-value        a value with no wire form, or of another kind
    ├── InvalidToken (ValueError)          invalid-token        a room name that is not a legal token
    ├── PeerError                                               the other side broke the protocol
    │   ├── Malformed                      malformed            bytes that are no message
    │   ├── Unexpected                     unexpected           a message out of order
    │   └── UnsupportedProtocol            unsupported-protocol another version
    ├── TooLarge                           too-large            beyond a limit in bytes, depth or number
    ├── TooManyRooms                       too-many-rooms       more rooms than one connection may hold
    ├── Forbidden (PermissionError)        forbidden            known, and not allowed
    ├── NotFound (KeyError)
    │   ├── NoSuchRoom                     no-such-room
    │   ├── NoSuchState                    no-such-state
    │   ├── NoSuchTrait                    no-such-trait
    │   ├── NoSuchLock                     no-such-lock         nobody has a named lock that is called like a state
    │   └── NoSuchPath                     no-such-path
    ├── SchemaConflict                     schema-conflict      two classes disagree about one trait
    ├── RevisionMismatch                   revision-mismatch    the value changed since it was read
    ├── ValueMismatch                      value-mismatch       the value is not the one that was expected
    ├── OutOfBounds (ValueError)           out-of-bounds        a sum that would leave the bounds the caller named
    ├── Locked                             locked               somebody else holds the lock of the state
    ├── LockLost                           lock-lost            the lock is not held any more
    ├── LockOrder (RuntimeError)           lock-order           taken where two could wait for each other
    ├── ReactionTooDeep                    reaction-too-deep    a chain of reactions that does not end
    ├── RoomGone                           room-gone            the room was deleted under its members
    ├── OutcomeUnknown                     outcome-unknown      nobody can say whether the write took effect
    ├── StoreFailed                        store-failed         the room cannot be written down at present
    ├── Overloaded                         overloaded           too many writes wait to be sent
    ├── Disconnected (ConnectionError)                          the server ended the connection
    │   ├── GoingAway                      going-away           it shuts down; come back
    │   ├── Replaced                       replaced             a newer connection of the same process took over
    │   └── Silent                         silent               nothing was heard for too long
    ├── LockTimeout (TimeoutError)         lock-timeout         somebody else held the lock for too long
    ├── LinkTimeout (TimeoutError)         timeout              no answer in the time given
    ├── ServerNotFound (ConnectionError)   server-not-found     no server to talk to
    │   └── ServerRefused                                       there is one, and it does not take this client
    ├── ComputedCycle (RuntimeError)       computed-cycle       a computed trait that is made of itself
    ├── WrongThread (RuntimeError)         wrong-thread         a blocking call where it would wait for itself
    ├── Forked (RuntimeError)              forked               used in a forked child
    └── Closed (RuntimeError)              closed               used after close()

Machine facts are attributes (``room``, ``state``, ``trait``, ``path``, ``expected``); ``str(error)`` is a sentence that
says what happened, to whom, and what to do next. ``ERRORS.md`` has a section for each code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence


class SharedWidgetsError(Exception):
    """The root of the tree: catch it to catch everything this project raises.

    Parameters
    ----------
    message : str
        A sentence for a person.
    room, state, trait : str, optional
        Where it happened.
    path : sequence of str, optional
        The trait, then the dict keys below it.
    expected : str, optional
        What would have been accepted.
    """

    code = "internal"

    def __init__(
        self,
        message: str = "",
        *,
        room: str | None = None,
        state: str | None = None,
        trait: str | None = None,
        path: Sequence[str] = (),
        expected: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.room = room
        self.state = state
        self.trait = trait if trait is not None else (path[0] if path else None)
        self.path = tuple(path)
        self.expected = expected

    def __str__(self) -> str:
        return self.message

    def located(self, *, room: str | None = None, state: str | None = None, path: Sequence[str] = ()) -> SharedWidgetsError:
        """Fill in the place where it is not known yet, and return the same error."""
        self.room = self.room if self.room is not None else room
        self.state = self.state if self.state is not None else state
        if path:
            self.path = (*path, *self.path)
            self.trait = self.path[0]
        return self


class InvalidValue(SharedWidgetsError, ValueError):
    """A value that has no wire form, or is not of the trait's kind."""

    code = "invalid-value"


class InvalidToken(SharedWidgetsError, ValueError):
    """A room name that breaks the rule for tokens."""

    code = "invalid-token"


class PeerError(SharedWidgetsError):
    """The other side of the wire broke the protocol."""


class Malformed(PeerError):
    """Bytes that are not a message of this protocol."""

    code = "malformed"


class Unexpected(PeerError):
    """A message that may not come at this point."""

    code = "unexpected"


class UnsupportedProtocol(PeerError):
    """A peer that speaks another version."""

    code = "unsupported-protocol"


class TooLarge(SharedWidgetsError, ValueError):
    """Beyond one of the limits sent in ``welcome``."""

    code = "too-large"


class TooManyRooms(SharedWidgetsError):
    """More rooms than one connection may hold."""

    code = "too-many-rooms"


class Forbidden(SharedWidgetsError, PermissionError):
    """The server knows who you are and does not allow it."""

    code = "forbidden"


class NotFound(SharedWidgetsError, KeyError):
    """Something addressed by name is not there."""


class NoSuchRoom(NotFound):
    """No room has this token."""

    code = "no-such-room"


class NoSuchState(NotFound):
    """The room has no state of this name."""

    code = "no-such-state"


class NoSuchTrait(NotFound):
    """The state has no trait of this name that you may see."""

    code = "no-such-trait"


class NoSuchLock(NotFound):
    """Nobody has a lock of this name, and a state is called so."""

    code = "no-such-lock"


class NoSuchPath(NotFound):
    """A dict key on the way is missing, or what is there is not a dict (list, text, number)."""

    code = "no-such-path"


class SchemaConflict(SharedWidgetsError):
    """Two classes of one state name disagree about a trait."""

    code = "schema-conflict"


class RevisionMismatch(SharedWidgetsError):
    """The state changed since the revision named by the caller."""

    code = "revision-mismatch"


class ValueMismatch(SharedWidgetsError):
    """The value is not the one that was expected; nothing was written."""

    code = "value-mismatch"


class OutOfBounds(SharedWidgetsError, ValueError):
    """A sum would leave the bounds its caller named; nothing was added."""

    code = "out-of-bounds"


class Locked(SharedWidgetsError):
    """Somebody else holds the lock of the state; nothing was written."""

    code = "locked"


class LockLost(SharedWidgetsError):
    """The lock was lost: its lease ran out, it was broken, or its process was taken for dead."""

    code = "lock-lost"


class LockOrder(SharedWidgetsError, RuntimeError):
    """A lock taken inside a transaction, or out of order while another is held: two could wait for each other for ever."""

    code = "lock-order"


class ReactionTooDeep(SharedWidgetsError):
    """A write in reaction to a write in reaction to a write, and so on: the chain is cut here."""

    code = "reaction-too-deep"


class LockTimeout(SharedWidgetsError, TimeoutError):
    """Somebody else held the lock for longer than one wanted to wait."""

    code = "lock-timeout"


class RoomGone(SharedWidgetsError):
    """The room was deleted, or is another one under the same token."""

    code = "room-gone"


class OutcomeUnknown(SharedWidgetsError):
    """The server has forgotten this process; a write may or may not have taken effect."""

    code = "outcome-unknown"


class StoreFailed(SharedWidgetsError):
    """The store refused to write; nothing was changed."""

    code = "store-failed"


class Overloaded(SharedWidgetsError):
    """Writes are made faster than they can be sent, for too long."""

    code = "overloaded"


class Disconnected(SharedWidgetsError, ConnectionError):
    """The server ended the connection."""


class GoingAway(Disconnected):
    """The server shuts down; clients come back when it is there again."""

    code = "going-away"


class Replaced(Disconnected):
    """A newer connection of the same process took over."""

    code = "replaced"


class Silent(Disconnected):
    """Nothing was heard from the client for too long."""

    code = "silent"


class LinkTimeout(SharedWidgetsError, TimeoutError):
    """No answer within the time given."""

    code = "timeout"


class ServerNotFound(SharedWidgetsError, ConnectionError):
    """No Jupyter server with the extension was found, or it refused the connection."""

    code = "server-not-found"


class ServerRefused(ServerNotFound):
    """There is a server, and it does not take this client: wrong credential, or no extension."""


class ComputedCycle(SharedWidgetsError, RuntimeError):
    """A computed trait is made of itself, by way of others or not."""

    code = "computed-cycle"


class WrongThread(SharedWidgetsError, RuntimeError):
    """A blocking call on the thread that would have to answer it."""

    code = "wrong-thread"


class Forked(SharedWidgetsError, RuntimeError):
    """A linked object was written in a forked child."""

    code = "forked"


class Closed(SharedWidgetsError, RuntimeError):
    """A handle was used after ``close()``."""

    code = "closed"


def _leaves(kind: type[SharedWidgetsError]) -> Iterator[type[SharedWidgetsError]]:
    if "code" in vars(kind):
        yield kind
    for child in kind.__subclasses__():
        yield from _leaves(child)


BY_CODE: dict[str, type[SharedWidgetsError]] = {kind.code: kind for kind in _leaves(SharedWidgetsError)}


def from_code(
    code: str,
    message: str,
    *,
    room: str | None = None,
    state: str | None = None,
    path: Sequence[str] = (),
    expected: str | None = None,
) -> SharedWidgetsError:
    """The exception for a code that came over the wire; an unknown code gives the root class."""
    kind = BY_CODE.get(code, SharedWidgetsError)
    return kind(message, room=room, state=state, path=path, expected=expected)
