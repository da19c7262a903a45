"""What the tools around a guest promise, in one boot: mounts, both sides' files, commands and how they end."""

import os
import threading
from pathlib import Path

import pytest

from tests.guest.conftest import KERNEL, QEMU
from vfsd.guest import Guest, GuestError, Settings, TimeLimitError


def test_every_share_is_mounted(guest: Guest) -> None:
    mounts = [line.split() for line in guest.run(["cat", "/proc/mounts"]).text.splitlines()]
    virtiofs = {fields[1]: fields[0] for fields in mounts if fields[2] == "virtiofs"}
    assert virtiofs == {"/mnt/share": "share", "/srv/second": "second"}


def test_release_is_that_of_the_kernel(guest: Guest) -> None:
    assert guest.run(["uname", "-r"]).text == guest.release
    assert f"Linux version {guest.release}" in guest.console


def test_files_of_each_side_are_seen_on_the_other(guest: Guest, shared: Path) -> None:
    (shared / "from-host").write_text("written on the host\n")
    result = guest.run("cat from-host; echo written in the guest >from-guest; mkdir -p deep/er; ln -s from-host link")
    assert result.check().text == "written on the host"
    assert (shared / "from-guest").read_text() == "written in the guest\n"
    assert (shared / "deep/er").is_dir()
    assert os.readlink(shared / "link") == "from-host"
    (shared / "from-guest").unlink()
    # The guest may believe in an entry for as long as the daemon has said, a second by default.
    assert guest.run("while [ -e from-guest ]; do sleep 0.1; done", timeout=60).status == 0


def test_shares_are_separate(guest: Guest, shared: Path) -> None:
    second = Path(guest.shares[1].directory)
    guest.run("echo one >only; echo two >/srv/second/only").check()
    assert (shared / "only").read_text() == "one\n"
    assert (second / "only").read_text() == "two\n"
    assert len(guest.daemons) == 2 and guest.daemons[0].pid != guest.daemons[1].pid


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        ("exit 7", 7),
        ("kill -KILL $$", 137),
        ("kill -TERM $$", 143),
        (["no-such-program"], 127),
        (["/mnt"], 126),
    ],
)
def test_exit_status(guest: Guest, command: list[str] | str, status: int) -> None:
    assert guest.run(command).status == status


def test_standard_output_and_error_are_separate(guest: Guest) -> None:
    result = guest.run("echo out; echo err >&2; printf 'no newline'")
    assert (result.stdout, result.stderr) == (b"out\nno newline", b"err\n")


def test_arguments_and_environment_arrive_unchanged(guest: Guest) -> None:
    words = ["", "a b", "$HOME", "it's", 'quo"te', "new\nline", "ü", "\\"]
    result = guest.run(["printf", "%s\\0", *words], environment={"ODD": "x'y $z"})
    assert result.stdout == b"".join(word.encode() + b"\0" for word in words)
    assert guest.run('printf %s "$ODD"', environment={"ODD": "x'y $z"}).text == "x'y $z"


def test_any_bytes_pass_in_and_out(guest: Guest, tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096
    assert guest.run(["cat"], stdin=data).stdout == data
    (tmp_path / "input").write_bytes(data)
    with open(tmp_path / "input", "rb") as file:
        assert guest.run(["cat"], stdin=file.fileno()).stdout == data
    assert guest.run(["cat"]).stdout == b""


def test_input_that_nobody_reads_is_no_hindrance(guest: Guest) -> None:
    assert guest.run(["true"], stdin=bytes(1 << 20)).status == 0
    assert guest.run(["echo", "next"]).text == "next"


def test_output_comes_while_the_command_runs(guest: Guest) -> None:
    seen = threading.Event()
    command = guest.start("echo begun; read line; echo $line >done", stdout=lambda data: seen.set())
    waiter = threading.Thread(target=guest.wait, args=(command, 30))
    waiter.start()
    # The command has no input, so it ends; what it wrote first does not wait for that.
    assert seen.wait(20)
    waiter.join()


def test_a_command_over_its_time_is_killed_and_the_guest_goes_on(guest: Guest) -> None:
    with pytest.raises(TimeLimitError):
        guest.run("sleep 600 & sleep 600", timeout=1)
    assert guest.run("ps | grep -c '[s]leep 600'").text == "0"
    assert guest.run(["echo", "alive"]).text == "alive"


def test_two_commands_at_a_time_and_no_third(guest: Guest) -> None:
    reader = guest.start("mkfifo /tmp/meeting; cat /tmp/meeting")
    writer = guest.start("while ! [ -p /tmp/meeting ]; do sleep 0.1; done; echo met >/tmp/meeting")
    with pytest.raises(GuestError, match="slots"):
        guest.start(["true"])
    assert guest.wait(writer, 30).status == 0
    assert guest.wait(reader, 30).text == "met"


def test_eight_commands_at_a_time(tmp_path: Path) -> None:
    with Guest(tmp_path, settings=Settings(qemu=QEMU), kernel_name=KERNEL, host_root=False, slots=8) as guest:
        # Each waits for all.
        meeting = "touch /tmp/here$n; for i in 0 1 2 3 4 5 6 7; do until [ -e /tmp/here$i ]; do sleep 0.1; done; done"
        script = f"{meeting}; read word; echo $word; echo $n >&2"
        commands = [guest.start(f"n={number}; {script}", stdin=b"word\n") for number in range(8)]
        results = [guest.wait(command, 60) for command in commands]
    assert [(result.status, result.text) for result in results] == [(0, "word")] * 8
    assert [int(result.stderr) for result in results] == list(range(8))


def test_a_signal_reaches_the_command(guest: Guest) -> None:
    ready = threading.Event()
    command = guest.start("trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.1; done",
                          stdout=lambda data: (ready.set(), seen.extend(data)))  # fmt: skip
    seen = bytearray()
    results = []
    waiter = threading.Thread(target=lambda: results.append(guest.wait(command, 60)))
    waiter.start()
    assert ready.wait(20)
    command.signal(2)
    waiter.join()
    assert results[0].status == 3 and bytes(seen).endswith(b"caught\n")


def test_host_programs_run_and_the_root_is_thrown_away(guest: Guest) -> None:
    assert guest.run(["git", "--version"]).text.startswith("git version")
    assert guest.run(["python3", "-c", "print(6 * 7)"], timeout=60).text == "42"
    guest.run("echo changed >/etc/vfsd-guest-was-here").check()
    assert not os.path.exists("/etc/vfsd-guest-was-here")


def test_monitor(guest: Guest) -> None:
    assert guest.qmp("query-status")["running"] is True
    with pytest.raises(GuestError, match="no-such-command"):
        guest.qmp("no-such-command")


def test_daemon_processes(guest: Guest) -> None:
    processes = guest.daemon.processes()
    assert processes[0] == guest.daemon.pid
    assert guest.daemon.worker in processes
