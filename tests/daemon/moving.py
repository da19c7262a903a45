"""A guest that moves: the test suite's front-end plays both QEMUs, and what lies between them."""

import os
from contextlib import suppress
from typing import Any

from tests.daemon.daemon import Daemon
from tests.frontend import FrontEnd
from vhost.message import NO_FD, STATE_LOAD, STATE_SAVE, U64, Request, StateTransfer


def save(frontend: FrontEnd) -> bytes:
    """What a daemon has to say of a guest that stands still. AssertionError when it can't."""
    ours, theirs = os.pipe()
    with open(ours, "rb") as pipe:
        answer = frontend.ask(Request.SET_DEVICE_STATE_FD, StateTransfer(STATE_SAVE, 0), [theirs])
        os.close(theirs)
        assert answer == U64(NO_FD), "refused"
        state = pipe.read()
    assert frontend.ask(Request.CHECK_DEVICE_STATE) == U64(0), "failed"
    return state


def load(frontend: FrontEnd, state: bytes) -> bool:
    """Gives it to another daemon. Whether that is content."""
    theirs, ours = os.pipe()
    with open(ours, "wb", buffering=0) as pipe:
        answer = frontend.ask(Request.SET_DEVICE_STATE_FD, StateTransfer(STATE_LOAD, 0), [theirs])
        os.close(theirs)
        assert answer == U64(NO_FD), "refused"
        left = memoryview(state)
        # Who has seen enough reads no more.
        with suppress(BrokenPipeError):
            while left:
                left = left[pipe.write(left) :]
    return bool(frontend.ask(Request.CHECK_DEVICE_STATE) == U64(0))


#: What a front-end has with one daemon, and its values with none.
SESSION: dict[str, Any] = {"sock": None, "channel": None, "features": 0, "protocol_features": 0, "announced": ()}


class Journey:
    """Of the guest of a front-end, which stands still from now on. Its memory goes along, as QEMU copies it."""

    def __init__(self, frontend: FrontEnd) -> None:
        self._frontend = frontend
        self._left: dict[str, Any] = {}
        frontend.stop()
        self.state = save(frontend)

    def arrive(self, daemon: Daemon, state: bytes | None = None) -> bool:
        """Knocks at another daemon, with another state if one is given. Whether it takes the guest."""
        frontend = self._frontend
        self._left = {name: getattr(frontend, name) for name in SESSION}
        vars(frontend).update(SESSION, sock=daemon.connect(), announced=[])
        frontend.sock.settimeout(frontend.timeout)
        frontend.negotiate()
        return load(frontend, self.state if state is None else state)

    def go_on(self) -> None:
        """The guest goes on where it has arrived, and nothing of it is left where it was."""
        self._close(self._left)
        self._frontend.start()

    def turn_back(self) -> None:
        """The guest goes on where it was."""
        if self._left:
            self._close(vars(self._frontend))
            vars(self._frontend).update(self._left)
        self._frontend.start()

    def _close(self, session: dict[str, Any]) -> None:
        for name in ("sock", "channel"):
            if session[name]:
                session[name].close()


def move(frontend: FrontEnd, daemon: Daemon) -> bytes:
    """The whole journey. The state that was moved."""
    journey = Journey(frontend)
    assert journey.arrive(daemon), daemon.log
    journey.go_on()
    return journey.state
