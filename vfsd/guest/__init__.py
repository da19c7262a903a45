"""Throwaway guests on shared directories: the vfsd-guest command and the test suite boot them with the same code.

Law: nothing here knows the daemon's insides. A guest is QEMU, a stock kernel, an initramfs of our own, and a program
that speaks vhost-user; the daemon under test and any other virtiofs daemon are started the same way.
"""

from vfsd.guest.channel import Command, Result
from vfsd.guest.errors import GuestError, TimeLimitError
from vfsd.guest.guest import Guest, Share
from vfsd.guest.machine import Settings

__all__ = ["Command", "Guest", "GuestError", "Result", "Settings", "Share", "TimeLimitError"]
