"""The site's sources, without its tools: the reference leaves no public name out, every page can be reached."""

import re
from pathlib import Path

import pytest

import sparsemax_nb

DOCS = Path(__file__).parent.parent / "docs"
#: Pages that are written, not made while the site is built.
PAGES = sorted(path for path in DOCS.rglob("*.md") if path.relative_to(DOCS).parts[0] not in ("generated", "_build"))
PACKAGES = sparsemax_nb, sparsemax_nb.train, sparsemax_nb.data, sparsemax_nb.metrics


def test_the_reference_holds_every_public_name_once():
    text = "\n".join(path.read_text() for path in sorted((DOCS / "api").glob("*.md")))
    named = [
        name.rpartition(".")[2] for name in re.findall(r"^\.\. auto(?:class|function|exception):: (\S+)$", text, re.M)
    ]
    public = {name for package in PACKAGES for name in package.__all__} - {"data", "metrics", "train"}
    assert sorted(named) == sorted(public)


@pytest.mark.parametrize("page", [path.relative_to(DOCS) for path in PAGES if path != DOCS / "index.md"], ids=str)
def test_every_page_is_in_a_table_of_contents(page):
    entries = {
        (path.parent / entry.strip()).relative_to(DOCS)
        for path in DOCS.rglob("index.md")
        for block in re.findall(r"```\{toctree\}\n(.*?)```", path.read_text(), re.S)
        for entry in block.splitlines()
        if entry and not entry.startswith(":") and ".." not in entry
    }
    assert page.with_suffix("") in entries


def test_included_files_exist():
    for path in PAGES:
        for included in re.findall(r"```\{include\} (\S+)", path.read_text()):
            assert "generated" in included or (path.parent / included).is_file(), f"{path}: {included}"
