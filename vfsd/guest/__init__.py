"""Throwaway guests on shared directories: the vfsd-guest command and the test suite boot them with the same code.

Law: nothing here knows the daemon's insides. A guest is QEMU, a stock kernel, an initramfs of our own, and a program
that speaks vhost-user; the daemon under test and any other virtiofs daemon are started the same way.
"""

from vfsd.guest.channel import Command, Result
from vfsd.guest.errors import GuestError, TimeLimitError
from vfsd.guest.guest import Guest
from vfsd.guest.machine import Settings
from vfsd.guest.migration import Moved
from vfsd.guest.share import Share

__all__ = ["Command", "Guest", "GuestError", "Moved", "Result", "Settings", "Share", "TimeLimitError"]
