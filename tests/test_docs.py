"""The documents lead to each other, and to what exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))


def links(page: Path) -> list[str]:
    return [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", page.read_text()) if "://" not in link]


def test_the_readme_leads_to_every_page() -> None:
    linked = {(ROOT / link).resolve() for link in links(README)}
    assert linked >= set(PAGES)


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
def test_what_a_page_names_exists(page: Path) -> None:
    for link in links(page):
        assert (page.parent / link).exists(), link
    for name in re.findall(r"(?<![\w/])(?:scripts|tests|vfsd|vhost)/[\w/.*\\-]*", page.read_text()):
        assert "*" in name or (ROOT / name.rstrip(".")).exists(), name


def test_every_script_is_told_of() -> None:
    """But those that only other scripts and pip call."""
    told = "".join(page.read_text() for page in (README, *PAGES))
    for script in filter(Path.is_file, (ROOT / "scripts").iterdir()):
        assert script.name in ("build_backend.py", "debian-mirror") or f"scripts/{script.name}" in told, script.name
