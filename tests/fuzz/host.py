"""What others do on the host to what is in the share, while a guest uses it."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path


class Host:
    """Acts on `root` and `elsewhere` of a place, both on one file system. Whatever fails, fails."""

    def __init__(self, place: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.root, self.elsewhere = os.fsencode(place / "root"), os.fsencode(place / "elsewhere")
        self.acts: list[Callable[[bytes, bytes], object]] = [
            os.rename, os.rename, os.link, self._move_away, self._move_back, self._replace, self._remove,
        ]  # fmt: skip

    def act(self) -> None:
        try:
            act = self.random.choice(self.acts)
            act(self._path(), self._path())
        except OSError:
            return

    def _path(self) -> bytes:
        """One that exists, up to three levels deep, or the root."""
        path = self.root
        for _ in range(self.random.randrange(1, 4)):
            names = sorted(os.listdir(path)) if os.path.isdir(path) and not os.path.islink(path) else []
            if not names:
                break
            path += b"/" + self.random.choice(names)
        return path

    def _move_away(self, path: bytes, other: bytes) -> None:
        if path != self.root:
            os.rename(path, self.elsewhere + b"/%d" % self.random.randrange(4))

    def _move_back(self, path: bytes, other: bytes) -> None:
        os.rename(self.elsewhere + b"/%d" % self.random.randrange(4), os.path.dirname(path) + b"/c")

    def _replace(self, path: bytes, other: bytes) -> None:
        if path == self.root or os.path.isdir(path):
            return
        os.unlink(path)
        with open(path, "xb") as file:
            file.write(b"another")

    def _remove(self, path: bytes, other: bytes) -> None:
        if path == self.root:
            return
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)
