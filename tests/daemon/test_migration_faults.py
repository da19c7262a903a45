"""Moves that go wrong: by what was done to the state, by the front-end, by the death of who moves it."""

import errno
import os
import random
import signal
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon.daemon import Daemon, children, guest, name, open_files, settled_files, until
from tests.daemon.moving import Journey, load, save
from tests.frontend import FrontEnd
from tests.fuseclient import ROOT
from vfsd.state import Part
from vhost.message import NO_FD, STATE_FAILED, STATE_LOAD, STATE_SAVE, U64, Request, StateTransfer

Daemons = Callable[..., Daemon]


def sealed(state: bytes) -> bytes:
    """The same with its checksum right again."""
    body = state[:-12]
    return body + struct.pack("=III", Part.END, 4, zlib.crc32(body))


def movers(daemon: Daemon) -> list[int]:
    """The process that moves a state, if there is one."""
    return [pid for pid in children(daemon.control) if name(pid) == "vfsd-state"]


def begin(frontend: FrontEnd, direction: int) -> int:
    """Our end of the pipe of a transfer."""
    ours, theirs = os.pipe() if direction == STATE_SAVE else reversed(os.pipe())
    answer = frontend.ask(Request.SET_DEVICE_STATE_FD, StateTransfer(direction, 0), [theirs])
    os.close(theirs)
    assert answer == U64(NO_FD)
    return ours


def fill(share: Path, count: int = 3000) -> None:
    """So many files that their state is more than a pipe holds."""
    for number in range(count):
        (share / str(number)).touch()


TAMPERED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "nothing": (lambda state: b"", "ends before it is complete"),
    "another program's": (lambda state: b"virtiofs" + state[8:], "made by another program"),
    "a later version": (lambda state: sealed(state[:8] + b"\2\0\0\0" + state[12:]), "version 2, and this vfsd reads"),
    "cut off": (lambda state: state[: len(state) // 2], "ends before it is complete"),
    "one bit": (lambda state: state[:100] + bytes([state[100] ^ 1]) + state[101:], "damaged"),
    "a huge table": (lambda state: sealed(state[:44] + b"\xff" * 4 + state[48:]), "more inodes or open files"),
    "a newer FUSE": (lambda state: sealed(state[:20] + b"\xff" + state[21:]), "minor 255 is that of a newer vfsd"),
    "no pages": (lambda state: sealed(state[:24] + bytes(4) + state[28:]), "has agreed to makes no sense"),
    "unknown flags": (lambda state: sealed(state[:43] + b"\x80" + state[44:]), "FUSE flags 0x8000000000000000"),
    "a name": (lambda state: sealed(state.replace(b"hello", b"hallo")), "some of what the guest uses is not found"),
    "a name that leads out": (lambda state: sealed(state.replace(b"hello", b"../..")), "is not found"),
    "a type": (lambda state: sealed(state.replace(b"\0\x80\0\0", b"\0\x90\0\0", 1)), "an inode makes no sense"),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_tampered_with(daemons: Daemons, how: str) -> None:
    """It is refused, in one sentence; the destination takes the right one after that, or the source goes on."""
    tamper, says = TAMPERED[how]
    source, target = daemons(), daemons()
    with guest(source) as (frontend, client):
        hello = client.lookup(ROOT, b"hello").nodeid
        fh = client.open(hello).fh
        journey = Journey(frontend)
        state = tamper(journey.state)
        assert state != journey.state
        before = len(open_files(target.control))
        assert not journey.arrive(target, state)
        (line,) = [line for line in target.log.splitlines() if "can't be loaded" in line]
        assert says in line
        assert "Traceback" not in target.log
        if len(how) % 2:
            assert load(frontend, journey.state)
            journey.go_on()
        else:
            journey.turn_back()
            until(lambda: target.process.poll() is not None or len(open_files(target.control)) <= before)
        assert client.read(hello, fh, 100) == b"hi there\n"


def test_any_damage(daemons: Daemons, share: Path) -> None:
    """With a checksum that is right. Whatever comes of it, the daemon and the next load do not suffer."""
    (share / "sub").mkdir()
    (share / "sub/file").touch()
    source, target = daemons(), daemons("--keep-listening")
    dice = random.Random(5)
    with guest(source) as (frontend, client):
        file = client.walk(b"sub/file").nodeid
        fh = client.open(file).fh
        client.opendir(client.lookup(ROOT, b"sub").nodeid)
        journey = Journey(frontend)
        good = journey.state
        taken = 0
        assert journey.arrive(target)
        for _ in range(150):
            state = bytearray(good)
            for _ in range(dice.choice((1, 1, 2, 20))):
                state[dice.randrange(12, len(state) - 12)] = dice.choice((0, 1, 0x7F, 0xFF, dice.randrange(256)))
            taken += load(frontend, sealed(bytes(state)))
        assert 0 < taken < 150
        assert load(frontend, good)
        journey.go_on()
        assert client.read(file, fh, 1) == b""
        assert client.getattr(file).attr.size == 0
    assert "Traceback" not in target.log and "was ended by" not in target.log
    target.logged("Client disconnected")


def test_a_source_whose_front_end_gives_up(daemons: Daemons, share: Path) -> None:
    fill(share)
    source = daemons()
    with guest(source) as (frontend, client):
        known = [client.lookup(ROOT, b"%d" % number).nodeid for number in range(3000)]
        frontend.stop()
        pipe = begin(frontend, STATE_SAVE)
        os.read(pipe, 100)
        os.close(pipe)
        assert frontend.ask(Request.CHECK_DEVICE_STATE) == U64(STATE_FAILED)
        assert "the guest's state can't be saved: Broken pipe" in source.log
        frontend.start()
        assert client.getattr(known[7]).attr.size == 0
        frontend.stop()
        assert len(save(frontend)) > 3000 * 48


@pytest.mark.parametrize("direction", [STATE_SAVE, STATE_LOAD])
def test_a_guest_that_goes_on_ends_it(daemons: Daemons, share: Path, direction: int) -> None:
    """A migration that was cancelled: nobody asks how it went."""
    fill(share)
    daemon = daemons()
    with guest(daemon) as (frontend, client):
        known = [client.lookup(ROOT, b"%d" % number).nodeid for number in range(3000)]
        before = len(settled_files(daemon))
        frontend.stop()
        pipe = begin(frontend, direction)
        (mover,) = until(lambda: movers(daemon))
        frontend.start()
        assert mover not in children(daemon.control)
        os.close(pipe)
        assert "the front-end gives up moving the guest's state" in daemon.log
        if direction == STATE_SAVE:
            assert client.getattr(known[7]).attr.size == 0
            assert len(settled_files(daemon)) <= before + 2
        else:
            client.getattr(known[7], expect=errno.EIO)
            client.init()
            client.lookup(ROOT, b"hello")
        assert frontend.ask(Request.CHECK_DEVICE_STATE) == U64(STATE_FAILED)


@pytest.mark.parametrize("direction", [STATE_SAVE, STATE_LOAD])
def test_who_moves_it_dies(daemons: Daemons, share: Path, direction: int) -> None:
    fill(share)
    source, target = daemons(), daemons()
    with guest(source) as (frontend, client):
        known = [client.lookup(ROOT, b"%d" % number).nodeid for number in range(3000)]
        if direction == STATE_SAVE:
            frontend.stop()
            pipe = begin(frontend, STATE_SAVE)
            daemon = source
        else:
            journey = Journey(frontend)
            assert not journey.arrive(target, b"")
            pipe = begin(frontend, STATE_LOAD)
            os.write(pipe, journey.state[: len(journey.state) // 2])
            daemon = target
        (mover,) = until(lambda: movers(daemon))
        os.kill(mover, signal.SIGKILL)
        assert frontend.ask(Request.CHECK_DEVICE_STATE) == U64(STATE_FAILED)
        os.close(pipe)
        assert "moving the guest's state was ended by SIGKILL" in daemon.log
        if direction == STATE_SAVE:
            assert save(frontend)
            frontend.start()
        else:
            assert load(frontend, journey.state)
            journey.go_on()
        assert client.getattr(known[7]).attr.size == 0
        assert len({client.lookup(ROOT, b"%d" % number).nodeid for number in range(3000)} - set(known)) == 0


def test_a_front_end_that_leaves(daemons: Daemons, share: Path) -> None:
    fill(share)
    daemon = daemons("--keep-listening")
    with guest(daemon) as (frontend, client):
        for number in range(3000):
            client.lookup(ROOT, b"%d" % number)
        frontend.stop()
        pipe = begin(frontend, STATE_SAVE)
        until(lambda: movers(daemon))
    daemon.logged("Client disconnected")
    assert movers(daemon) == []
    os.close(pipe)
    with guest(daemon) as (_, client):
        client.lookup(ROOT, b"hello")


def test_the_daemon_can_be_told_to_end_meanwhile(daemons: Daemons) -> None:
    """While the front-end waits for an answer, too."""
    daemon = daemons()
    with guest(daemon, init=False) as (frontend, _):
        frontend.stop()
        pipe = begin(frontend, STATE_LOAD)
        frontend.send(Request.CHECK_DEVICE_STATE)
        until(lambda: movers(daemon))
        daemon.process.terminate()
        assert daemon.wait() == 1
        os.close(pipe)
