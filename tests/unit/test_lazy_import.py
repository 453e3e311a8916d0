"""Importing costs little and opens nothing; the server is never imported by the library."""

from __future__ import annotations

import subprocess
import sys

import pytest


def told(code: str) -> str:
    """What a fresh interpreter prints."""
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def test_import_opens_nothing_and_loads_nothing_heavy() -> None:
    code = """
import socket, sys, threading
def forbidden(*args, **kwargs): raise AssertionError("a socket was opened")
socket.socket = forbidden
import sharedwidgets
heavy = {"tornado", "ipywidgets", "anywidget", "traitlets", "msgspec", "jupyter_server", "sharedwidgets_server", "IPython"}
print(sorted(heavy & set(sys.modules)), threading.active_count())
"""
    assert told(code) == "[] 1"


def test_making_an_object_opens_nothing() -> None:
    code = """
import socket, sys, threading
import traitlets as t
import sharedwidgets
class Counter(sharedwidgets.SharedState):
    count = t.Int(0)
def forbidden(*args, **kwargs): raise AssertionError("a socket was opened")
socket.socket = forbidden
c = Counter(count=2)
c.count += 1
unwanted = {"tornado.websocket", "jupyter_server", "sharedwidgets_server"}
print(c.count, threading.active_count(), sorted(unwanted & set(sys.modules)))
"""
    assert told(code) == "3 1 []"


def test_even_a_link_that_fails_never_loads_the_server() -> None:
    code = """
import logging, sys
import traitlets as t
import sharedwidgets
class Counter(sharedwidgets.SharedState):
    count = t.Int(0)
try:
    Counter().link_to("x", 0.2, server="http://127.0.0.1:1/", credential="secret")
except sharedwidgets.errors.ServerNotFound as error:
    print(sorted({"jupyter_server", "sharedwidgets_server"} & set(sys.modules)), "secret" in str(error))
"""
    assert told(code) == "[] False"


@pytest.mark.parametrize("name", ["SharedState", "Room", "Member", "bind", "computed", "connect"])
def test_each_public_name_is_there(name: str) -> None:
    assert told(f"import sharedwidgets; print(sharedwidgets.{name}.__name__, {name!r} in dir(sharedwidgets))") == f"{name} True"


def test_an_unknown_name_is_an_attribute_error() -> None:
    import sharedwidgets

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sharedwidgets.nothing  # noqa: B018
