"""The words of the project: one word for one thing, and no riddles; see CONTRIBUTING.md."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: {what is not written (a regular expression): what is written instead}.
BANNED = {
    r"\bwings?\b": "backend",
    r"\byardsticks?\b": "baseline",
    r"\bnets? [1-4]\b|\btests by net\b": "tier",
    r"\bturned (a)?round\b": "transposed; by label",
    r"\bmend(s|ed)?\b": "fix",
    r"\bwhich see\b": "see",
    r"\bwhence\b": "where ... comes from",
    r"\bwho lies where\b": "which index holds what",
    r"\bnobody\b": "no thread, no row",
    r"\bfigures of\b": "metrics of",
    r"\bgradients? by (?!hand|autograd|finite)": "gradient with respect to, of",
    r"\bPositives\b|\bpositives\b": "labels, label_rows",
    r"\b(ctrl_c_later|restore_carried|enters\(|figures_of_ranks|embedding_rate\b|_answer_few)": "a telling name",
    r"\b(HELD|NOBODY)\b": "a telling name",
    r"\b_?places? (of|in) the (layer|array|list)\b": "position, index, slot",
    r"\ba panel a method\b": "one panel per method",
    r"\bpart again\b": "diverge",
}
#: Files that are made from results that were measured, this list, and texts that are not ours.
EXCEPT = {"tests/test_words.py", "bench/README.md", "ptxsim/README.md", "CHANGELOG.md"}


def files():
    listed = subprocess.run(
        ["git", "ls-files", "*.py", "*.md", "*.toml", "*.cfg", "Makefile"], cwd=ROOT, capture_output=True
    )
    names = listed.stdout.decode().split() or [str(p.relative_to(ROOT)) for p in ROOT.rglob("*.py")]
    return [name for name in names if name not in EXCEPT and not name.startswith(("ptxsim/", "bench/results/"))]


def test_no_banned_words():
    found = []
    for name in files():
        for number, line in enumerate((ROOT / name).read_text().split("\n"), 1):
            for pattern, instead in BANNED.items():
                if word := re.search(pattern, line, re.IGNORECASE if pattern.islower() else 0):
                    found.append(f"{name}:{number}: {word[0]!r}; write: {instead}")
    assert not found, "\n".join(found)


def test_the_pattern_of_a_banned_word_finds_it():
    """The test above is blind where this one fails."""
    text = "the wings; a yardstick; net 3; turned round; which see; nobody; the gradient by x; HELD"
    assert sum(bool(re.search(pattern, text)) for pattern in BANNED) == 8
    assert not any(re.search(pattern, "a network's backend, transposed; see also") for pattern in BANNED)
