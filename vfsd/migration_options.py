"""Rows of the option table for a guest that moves to another daemon (docs/migration.md)."""

from vfsd.option import Option

_SWITCH = {"on": True, "off": False}

MIGRATION = (
    Option(
        "--migration-mode",
        "How the files that a migrated guest uses are found at its destination: by path (find-paths), or by file "
        "handle (file-handles), where both daemons share one file system and may open handles. The source decides",
        *("migration_mode", "MODE"),
        words={word: word for word in ("find-paths", "file-handles")},
    ),
    Option(
        "--migration-on-error",
        "What the destination does about a file it does not find: refuse the guest, so that it goes on at the source "
        "(abort), or let it have errors for that file (guest-error)",
        *("migration_on_error", "ACTION"),
        words={word: word for word in ("abort", "guest-error")},
    ),
    Option(
        "--migration-verify-handles",
        "With find-paths: the destination compares file handles, so that no other file is taken for the one of that "
        "path. Both daemons must share one file system. The source decides",
        "migration_verify_handles",
        words=_SWITCH,
    ),
    Option(
        "--migration-confirm-paths",
        "With find-paths: also look again at files whose descriptors were closed, since there were too many; the paths "
        "of all others are looked up while the guest stands still in any case. The source decides",
        "migration_confirm_paths",
        words=_SWITCH,
    ),
)
