"""pyproject.toml names every file it has to: a package or a C file that is added and not listed would be missed."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_is_listed() -> None:
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("vhost", "vfsd", "dax")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert sorted(SETTINGS["packages"]) == sorted(found)


def test_every_c_file_is_compiled_once() -> None:
    listed = [source for extension in SETTINGS["ext-modules"] for source in extension["sources"]]
    found = [str(path.relative_to(ROOT)) for top in ("vhost", "vfsd", "dax") for path in (ROOT / top).rglob("*.c")]
    emitted = {source for source in listed if Path(source).name.startswith("_")}
    assert len(emitted) == len(SETTINGS["ext-modules"])
    assert sorted(set(listed) - emitted) == sorted(set(found) - emitted)
    assert len(set(listed)) == len(listed)


def test_every_data_file_is_installed() -> None:
    for package in SETTINGS["packages"]:
        directory = ROOT / package.replace(".", "/")
        patterns = SETTINGS["package-data"].get(package, [])
        installed = {path for pattern in patterns for path in directory.glob(pattern)}
        data = {path for path in directory.glob("*") if path.suffix in (".h", ".sh", ".json", ".typed")}
        assert data <= installed, f"package-data of {package}"
