"""Plain Python processes that share a room through a real server with authentication: the product, end to end."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import sharedwidgets.connection
from sharedwidgets import connect
from sharedwidgets.errors import InvalidValue, NoSuchState, NoSuchTrait, RoomGone
from sharedwidgets_server.testing import LiveServer
from support.rest import ask, room_url
from support.scripts import Script, eventually, seq

BEGIN = """
import threading, time
from sharedwidgets import connect, errors
from sharedwidgets.errors import *
room = connect({room!r})
changes, came = [], threading.Condition()

def hear(change):
    with came:
        changes.append([change.state, change.trait, change.old, change.new, change.origin, change.actor and change.actor.kind])
        came.notify_all()

def heard(count):
    with came:
        assert came.wait_for(lambda: len(changes) >= count, 10), changes
    return changes
"""


def run(server: LiveServer, code: str, *, wait: float = 30.0, environ: dict[str, str] | None = None) -> tuple[int, str, str]:
    """A whole script, as a user would start it; exit code, stdout, stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", textwrap.dedent(code)],
        env={**server.kernel_environ(), **(environ or {})},
        capture_output=True,
        text=True,
        timeout=wait,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def token(room: str) -> str:
    return f"scripts-{room}"


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    for connection in list(sharedwidgets.connection._shared.values()):
        connection.close()


def begin(token: str) -> str:
    return BEGIN.format(room=token)


def test_two_scripts_share_one_live_state(live: LiveServer, token: str) -> None:
    with Script(live, begin(token)) as one, Script(live, begin(token)) as two:
        assert one.run("c = room.define('Counter', count=0, name='', tags={}, items=[])", "dict(c)") == {
            "count": 0, "name": "", "tags": {}, "items": [],
        }  # fmt: skip
        assert two.value("room.wait_until(lambda: 'Counter' in room, 10)")
        two.run("c = room['Counter']; room.subscribe(hear)")
        before = seq(live, token)
        # A write shows in its own process before the assignment returns, and in the other when it gets there.
        assert one.run("c['count'] = 3", "c['count']") == 3
        assert two.value("heard(1)") == [["Counter", "count", 0, 3, "remote", "script"]]
        assert two.run("c['name'] = 'ana'; room.flush()", "dict(c)")["name"] == "ana"
        assert one.value("room.wait_until(lambda: c['name'] == 'ana', 10)")
        # Its own writes are not told to an author.
        assert two.value("len(changes)") == 1
        # Two assignments, two entries.
        assert seq(live, token) == before + 2
        assert one.value("[m.kind for m in room.members]") == ["script", "script"]
        assert one.value("len({m.id for m in room.members})") == 2
        assert two.value("[room.last_change('Counter', 'count').actor.kind, room.last_change('Counter', 'count').seq]") == [
            "script", before + 1,
        ]  # fmt: skip
        assert [one.finish(), two.finish()] == ["", ""]


def test_sums_of_two_writers_add_up(live: LiveServer, token: str) -> None:
    with Script(live, begin(token)) as one, Script(live, begin(token)) as two:
        one.run("c = room.define('Counter', count=0, items=[])")
        two.run("c = room.define('Counter', count=0, items=[])")
        before = seq(live, token)
        go = "for i in range(500):\n    c.increment('count'); c.append('items', {who!r})\nroom.flush()"
        one.process.stdin.write(json.dumps([go.format(who="one"), "None"]) + "\n")  # type: ignore[union-attr]
        one.process.stdin.flush()  # type: ignore[union-attr]
        two.run(go.format(who="two"))
        assert json.loads(one.process.stdout.readline())[0] == "ok"  # type: ignore[union-attr]
        for script in (one, two):
            assert script.value("room.wait_until(lambda: len(c['items']) == 1000, 10)")
            assert script.value("c['count']") == 1000
            assert script.value("[c['items'].count('one'), c['items'].count('two')]") == [500, 500]
        assert seq(live, token) <= before + 2000
        assert one.value("c['items']") == two.value("c['items']")


def test_a_transaction_is_one_entry_and_none_after_an_exception(live: LiveServer, token: str) -> None:
    with Script(live, begin(token)) as one, Script(live, begin(token)) as two:
        one.run("c = room.define('Counter', a=0, b=0); d = room.define('Other', x=0)")
        assert two.value("room.wait_until(lambda: 'Other' in room, 10)")
        two.run("c, d = room['Counter'], room['Other']; room.subscribe(hear)")
        before = seq(live, token)
        one.run("""
with room.transaction():
    c['a'] = 1
    c.increment('b', 5)
    assert (c['a'], c['b']) == (1, 5)
    with room.transaction():
        d['x'] = 9
room.flush()
""")
        assert sorted(two.value("heard(3)")) == [
            ["Counter", "a", 0, 1, "remote", "script"],
            ["Counter", "b", 0, 5, "remote", "script"],
            ["Other", "x", 0, 9, "remote", "script"],
        ]
        assert seq(live, token) == before + 1
        one.run("""
try:
    with room.transaction():
        c['a'] = 2
        raise KeyError
except KeyError:
    pass
assert c['a'] == 1
try:
    with room.transaction():
        c['a'] = 2
        c['b'] = 'text'
except InvalidValue as error:
    assert (error.state, error.trait) == ('Counter', 'b')
else:
    raise AssertionError
assert (c['a'], c['b']) == (1, 5)
room.flush()
""")
        assert seq(live, token) == before + 1
        assert two.value("len(changes)") == 3


def test_a_late_joiner_has_everything_and_hears_of_no_past(live: LiveServer, token: str) -> None:
    with Script(live, begin(token)) as one:
        one.run("c = room.define('Counter', count=0, blob=b'', big=0, odd=0.0)")
        one.run("c.update({'count': 7, 'blob': b'\\x00\\xff' * 40000, 'big': 2**80, 'odd': float('inf')}); room.flush()")
        with Script(live, begin(token)) as late:
            late.run("room.subscribe(hear); c = room['Counter']")
            late.run("wanted = {'count': 7, 'blob': b'\\x00\\xff' * 40000, 'big': 2**80, 'odd': float('inf')}")
            assert late.value("dict(c) == wanted")
            assert late.value("[(last := room.last_change('Counter', 'count')).seq, last.actor.kind]") == [2, "script"]
            one.run("c['count'] = 8")
            assert late.value("heard(1)") == [["Counter", "count", 7, 8, "remote", "script"]]


def test_coming_and_going_is_told_once(live: LiveServer, token: str) -> None:
    with Script(live, begin(token)) as one:
        one.run("came_in, went = [], []; room.on_join(came_in.append); room.on_leave(went.append)")
        with Script(live, begin(token)) as two:
            assert one.value("room.wait_until(lambda: len(room.members) == 2, 10)")
            two.run("room.close()")
            assert one.value("room.wait_until(lambda: len(room.members) == 1, 10)")
            two.run(f"room = connect({token!r})")
            assert one.value("room.wait_until(lambda: len(room.members) == 2, 10)")
        # A process that ends says goodbye: nobody waits for it to be missed.
        assert one.value("room.wait_until(lambda: len(room.members) == 1, 10)")
        eventually(lambda: one.value("[len(came_in), len(went)]") == [2, 2])


def test_a_refused_write_is_undone_and_told(live: LiveServer, token: str) -> None:
    with Script(live, begin(token)) as one, Script(live, begin(token)) as two:
        one.run("c = room.define('Counter', count=0, text='')\nrefused = []; room.on_refused(refused.append)")
        two.run("room.wait_until(lambda: 'Counter' in room, 10); room.subscribe(hear)")
        before = seq(live, token)
        one.run("""
from sharedwidgets.core.protocol import Set
room.subscribe(hear)
room._write([Set(state='Counter', path=('count',), value=501, if_rev=0)])  # of a revision that is no more
""")
        assert one.value("heard(1)") == [["Counter", "count", 501, 0, "rollback", None]]
        told = one.run("room.flush()", "[c['count'], [(item.problem.code, item.n) for item in refused]]")
        assert told == [0, [["revision-mismatch", 1]]]
        assert seq(live, token) == before
        one.run("c['text'] = 'ok'")
        assert two.value("heard(1)") == [["Counter", "text", "", "ok", "remote", "script"]]


def test_a_write_too_large_to_be_read_is_refused_at_its_author(live: LiveServer, token: str) -> None:
    """The server would end the connection on it, and again after each reconnect: nothing behind it would ever arrive."""
    with Script(live, begin(token)) as one:
        one.run("c = room.define('Counter', text='', count=0, **{f't{number}': '' for number in range(9)})")
        one.run("""
def refused(work):
    try:
        work()
    except TooLarge as error:
        return [error.room, error.state]
    raise AssertionError

def many():
    with room.transaction():
        for number in range(9):
            c[f't{number}'] = chr(1) * (1 << 19)

told = [
    refused(lambda: c.update({'text': 'x' * (9 << 20)})),
    refused(lambda: c.update({'text': 'x' * (1 << 20)})),
    refused(many),
    refused(lambda: room.define('Huge', text='x' * (9 << 20))),
]
c['count'] = 1
room.flush()
""")
        assert one.value("told") == [[token, "Counter"]] * 3 + [[token, "Huge"]]
        assert one.value("[room.link_state, c['text'], c['count']]") == ["live", "", 1]
        assert seq(live, token) == 2


def test_errors_say_what_to_do(live: LiveServer, token: str) -> None:
    with Script(live, begin(token)) as one, Script(live, begin(token)) as two:
        one.run("c = room.define('Counter', count=0)")
        assert two.value("room.wait_until(lambda: 'Counter' in room, 10)")
        two.run("""
def fails(kind, work):
    try:
        work()
    except kind as error:
        return str(error)
    raise AssertionError(kind)

texts = [
    fails(SchemaConflict, lambda: room.define('Counter', count='text')),
    fails(NoSuchState, lambda: room['Cuonter']),
    fails(NoSuchTrait, lambda: room['Counter'].__setitem__('cuont', 1)),
    fails(InvalidValue, lambda: room['Counter'].__setitem__('count', 'x')),
    fails(InvalidValue, lambda: room['Counter'].__setitem__('count', object())),
    fails(InvalidToken, lambda: connect('..')),
]
""")
        texts = two.value("texts")
        assert "state_name" in texts[0]
        assert "Counter" in texts[1]
        assert "count" in texts[2]
        assert seq(live, token) == 1


# --- the end of a script


def test_h10_the_last_line_of_a_script_arrives(live: LiveServer, token: str) -> None:
    code, out, err = run(
        live,
        f"""
        from sharedwidgets import connect
        room = connect({token!r})
        c = room.define("Counter", count=0)
        for _ in range(1000):
            c.increment("count")
        c["count"] = c["count"] + 1
    """,
    )
    assert (code, out, err) == (0, "", "")
    body = ask(room_url(live, "rooms", token), headers=live.headers).body
    assert body["states"]["Counter"]["values"]["count"] == 1001
    assert body["members"] == []


def test_h10_a_script_that_fails_still_sends_what_it_wrote(live: LiveServer, token: str) -> None:
    code, _, err = run(
        live,
        f"""
        from sharedwidgets import connect
        connect({token!r}).define("Counter", count=0)["count"] = 5
        raise SystemExit("done for")
    """,
    )
    assert (code, err) == (1, "done for\n")
    assert ask(room_url(live, "rooms", token), headers=live.headers).body["states"]["Counter"]["values"]["count"] == 5


def test_h10_what_has_no_answer_is_named_on_stderr(tmp_path: Path, token: str) -> None:
    with LiveServer(tmp_path) as server, Script(server, begin(token)) as one, Script(server, begin(token)) as idle:
        one.run("c = room.define('Counter', count=0); other = connect('other-room').define('Counter', count=0)")
        one.run("c['count'] = 1; room.flush()")
        server.kill()
        assert one.value("room.wait_until(lambda: room.link_state == 'offline', 10)") in (True, False)
        eventually(lambda: one.value("room.link_state") == "offline")
        one.run("c['count'] = 2\nc.increment('count')\nother['count'] = 1")
        err = one.finish()
        assert f"2 write(s) to '{token}' were not acknowledged by {server.url}" in err
        assert f"1 write(s) to 'other-room' were not acknowledged by {server.url}" in err
        assert len(err.splitlines()) == 2
        assert one.process.returncode == 0
        # Who wrote nothing has nothing to say.
        assert idle.finish() == ""


def test_a_script_without_a_server_says_what_to_do(live: LiveServer, tmp_path: Path, token: str) -> None:
    nowhere = {"SHAREDWIDGETS_URL": "http://127.0.0.1:9/", "SHAREDWIDGETS_CREDENTIAL": ""}
    code = f"from sharedwidgets import connect; connect({token!r}, timeout=0.5)"
    status, _, err = run(live, code, environ=nowhere)
    assert status == 1
    assert "ServerNotFound" in err.splitlines()[-1]
    assert "http://127.0.0.1:9/" in err
    status, _, err = run(live, code, environ={"SHAREDWIDGETS_URL": "", "JUPYTER_RUNTIME_DIR": str(tmp_path)})
    assert "pip install" in err or "Install sharedwidgets" in err


@pytest.mark.parametrize("credential", ["wrong", "sw1-wrong", "ünïcode", "日本", "two\nlines"])
def test_a_credential_that_is_refused_says_so_at_once(live: LiveServer, token: str, credential: str) -> None:
    status, _, err = run(
        live,
        f"""
        import time
        from sharedwidgets import connect, errors
        began = time.monotonic()
        try:
            connect({token!r}, credential={credential!r}, timeout=20)
        except errors.ServerNotFound as error:
            assert time.monotonic() - began < 10, "it waited for what cannot come"
            assert {credential!r} not in str(error)
        else:
            raise AssertionError
        """,
    )
    assert (status, err) == (0, "")


def test_a_script_whose_name_is_no_text_links(live: LiveServer, token: str, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9" + b"x" * 200 + b".py"
    with open(path, "w") as file:
        file.write(f"from sharedwidgets import connect\nprint([m.name for m in connect({token!r}).members])\n")
    done = subprocess.run([sys.executable, path], env=live.kernel_environ(), capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert "caf?xxx" in done.stdout


@pytest.mark.parametrize("name", ["", "x" * 257, "\ud800"])
def test_a_state_of_no_name_is_refused_before_anybody_hears_of_it(live: LiveServer, token: str, name: str) -> None:
    """The server hangs up on it, and it would be asked for again with each new socket."""
    with connect(token, live.url, live.token, delivery="thread") as room:
        with pytest.raises(InvalidValue):
            room.define(name, count=0)
        assert room.define("Counter", count=0)["count"] == 0


def test_a_mistyped_write_on_a_handle_raises(live: LiveServer, token: str) -> None:
    with connect(token, live.url, live.token, delivery="thread") as room:
        counter = room.define("Counter", count=0)
        with pytest.raises(AttributeError):
            counter.count = 99  # type: ignore[attr-defined]


async def late(fact: object) -> None:
    """Awaited by nobody."""


async def each(fact: object) -> AsyncIterator[None]:
    yield


class Late:
    async def __call__(self, fact: object) -> None:
        """Awaited by nobody."""


@pytest.mark.parametrize("callback", [late, each, Late(), Late().__call__, functools.partial(late)])
@pytest.mark.parametrize("method", ["subscribe", "on_join", "on_leave", "on_refused"])
def test_a_callback_that_nobody_would_await_is_refused_at_once(
    live: LiveServer, token: str, method: str, callback: Any
) -> None:
    with connect(token, live.url, live.token, delivery="thread") as room:
        with pytest.raises(TypeError, match=f"{method} takes a plain function"):
            getattr(room, method)(callback)
        with pytest.raises(TypeError, match=f"{method} takes a plain function, not None"):
            getattr(room, method)(None)
        getattr(room, method)(lambda fact: None)()


def test_a_deleted_room_has_no_members_and_shows_what_it_held_last(live: LiveServer, token: str) -> None:
    with connect(token, live.url, live.token, delivery="thread") as room:
        counter = room.define("Counter", count=4)
        assert len(room.members) == 1
        live.ask("DELETE", f"sharedwidgets/api/rooms/{token}")
        eventually(lambda: room.link_state == "closed")
        assert (room.members, [*room], counter["count"], room["Counter"]["count"]) == ((), ["Counter"], 4, 4)
        with pytest.raises(RoomGone):
            counter["count"] = 5
        assert counter["count"] == 4
    with connect(token, live.url, live.token, delivery="thread") as room:
        assert len(room.members) == 1
        room.close()
        assert room.members == ()


def test_who_asks_for_the_last_change_of_what_is_not_there_is_told(live: LiveServer, token: str) -> None:
    with connect(token, live.url, live.token, delivery="thread") as room:
        room.define("Counter", count=4)
        assert room.last_change("Counter", "count").seq == 1  # type: ignore[union-attr]
        with pytest.raises(NoSuchTrait, match="zz"):
            room.last_change("Counter", "zz")
        with pytest.raises(NoSuchState, match="Nope"):
            room.last_change("Nope", "count")


def test_a_room_that_is_deleted_while_one_joins_it(live: LiveServer, token: str) -> None:
    """Whoever asks is told, or is in the new room; nobody holds a handle of a room that is no more."""
    for number in range(10):
        name = f"{token}-{number}"
        with connect(name, live.url, live.token, delivery="thread") as room:
            room.define("Counter", count=0)
            with ThreadPoolExecutor(2) as pool:
                gone = pool.submit(live.ask, "DELETE", f"sharedwidgets/api/rooms/{name}")
                joining = pool.submit(connect, name, live.url, live.token, delivery="thread")
                gone.result(10)
                try:
                    other = joining.result(10)
                except RoomGone:
                    continue
            try:
                other.define("Counter", count=1)
            except RoomGone:
                # It joined in time, and heard of the deletion like everyone in the room.
                eventually(lambda other=other: other.link_state == "closed")
            else:
                assert live.ask("GET", f"sharedwidgets/api/rooms/{name}")["members"]
            other.close()


def test_the_server_is_found_by_what_it_left_in_the_runtime_folder(live: LiveServer, token: str) -> None:
    script = f"from sharedwidgets import connect; print(connect({token!r}).define('Counter', count=4)['count'])"
    done = subprocess.run([sys.executable, "-c", script], env=live.environ(), capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n", "")
