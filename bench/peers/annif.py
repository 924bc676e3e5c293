"""Annif, the subject-indexing tool of libraries: its omikuji backend, run by its command line in a separate Python.

Annif needs older packages than we do: ``python3 -m venv annif && annif/bin/pip install annif[omikuji]``. Its tokenizer
needs NLTK's data package "punkt_tab", which Annif downloads when it first runs.
"""

import json
import os
import resource
import subprocess
import time

import numpy as np

from . import Unavailable

BONSAI = {"cluster_balanced": "False", "cluster_k": 100, "max_depth": 3}
#: The examples of Annif's documentation: all defaults (like Parabel), and like Bonsai. The third one adds the features
#: of the projects that the National Library of Finland publishes (min_df there is 2 or 5, by the number of documents).
PROJECTS = {"annif-parabel": {}, "annif-bonsai": BONSAI, "annif-bonsai-2-grams": BONSAI | {"min_df": 2, "ngram": 2}}
#: Annif's defaults: suggestions that `annif eval` keeps, and that the backend computes.
EVAL_LIMIT, BACKEND_LIMIT = 10, 100
URI = "http://example.org/l/"
VERSIONS = """
import importlib.metadata, json
print(json.dumps({name: importlib.metadata.version(name) for name in ("annif", "omikuji", "scikit-learn", "nltk")}))
"""


def _run(python, *arguments, folder):
    """Run Python in isolated mode; returns (standard output, seconds)."""
    settings = {"ANNIF_PROJECTS": str(folder / "projects.cfg"), "ANNIF_DATADIR": str(folder / "data")}
    start = time.perf_counter()
    try:
        done = subprocess.run([python, "-I", *arguments], capture_output=True, text=True, env=os.environ | settings)
    except OSError as problem:
        raise Unavailable(f"{python} does not run: {problem}") from None
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{python} {' '.join(arguments)} failed:\n{done.stderr}")
    return done.stdout, seconds


def _versions(python, folder):
    try:
        return json.loads(_run(python, "-c", VERSIONS, folder=folder)[0])
    except RuntimeError as problem:
        raise Unavailable(
            f"Annif is not installed for {python} (pip install annif[omikuji], in a separate environment): "
            f"{str(problem).splitlines()[-1]}"
        ) from None


def _write_corpus(path, texts, labels):
    """Annif's TSV format: the text, a tab, and the URIs of the labels."""
    with open(path, "w") as file:
        for text, first, last in zip(texts, labels.indptr, labels.indptr[1:], strict=False):
            uris = " ".join(f"<{URI}{label}>" for label in labels.indices[first:last].tolist())
            file.write(f"{text}\t{uris}\n")


def _read_suggestions(path, k):
    """Ids (n, k) from the output of ``annif index``, best first, padded with -1."""
    with open(path) as file:
        rows = [json.loads(line)["results"] for line in file]
    ids = np.full((len(rows), k), -1, np.int32)
    for row, found in zip(ids, rows, strict=True):
        row[: len(found)] = [int(suggestion["uri"].removeprefix(URI)) for suggestion in found]
    return ids


def _size(folder):
    """Bytes of the files that a trained project needs for suggestions."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and "-train" not in path.name)


def train_and_suggest(project, train, test, names, *, language, analyzer, python, folder, threads, k=20):
    """Train a project of `PROJECTS`, evaluate it, and suggest k labels; returns ids (n, k) and measurements.

    `train` and `test` are (texts, labels as CSR), and `names` are the names of the labels. "annif" of the measurements
    are the metrics that ``annif eval`` computes. Seconds are those of whole commands, including the start of Python.
    """
    folder.mkdir(parents=True, exist_ok=True)
    versions = _versions(python, folder)
    files = {name: folder / f"{name}.tsv" for name in ("train", "test", "one", "vocabulary")}
    _write_corpus(files["train"], *train)
    _write_corpus(files["test"], *test)
    _write_corpus(files["one"], test[0][:1], test[1][:1])
    files["vocabulary"].write_text("".join(f"<{URI}{i}>\t{name}\n" for i, name in enumerate(names)))
    settings = {"language": language, "backend": "omikuji", "analyzer": analyzer, "vocab": "labels"} | PROJECTS[project]
    lines = [f"[{project}]", *(f"{name}={value}" for name, value in settings.items())]
    (folder / "projects.cfg").write_text("\n".join(lines) + "\n")
    suggestions, scores = folder / "suggestions.jsonl", folder / "metrics.json"

    def annif(*arguments):
        return _run(python, "-m", "annif.cli", *map(str, arguments), folder=folder)[1]

    def index(path):
        suggestions.unlink(missing_ok=True)
        return annif("index", project, path, "--limit", k, "--no-include-doc", "--output", suggestions)

    annif("load-vocab", "--force", "--language", language, "labels", files["vocabulary"])
    train_seconds = annif("train", "--jobs", threads, project, files["train"])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024  # Linux
    eval_seconds = annif("eval", "--jobs", threads, "--metrics-file", scores, project, files["test"])
    start_seconds = index(files["one"])
    suggest_seconds = index(files["test"])
    ids = _read_suggestions(suggestions, k)
    np.save(folder / "ids.npy", ids)
    return ids, {
        "train_seconds": train_seconds,
        "eval_seconds": eval_seconds,
        "suggest_seconds": suggest_seconds,
        "start_seconds": start_seconds,
        "ms_a_query": 1e3 * max(0.0, suggest_seconds - start_seconds) / max(1, len(ids)),
        "peak_memory_bytes": peak,
        "model_bytes": _size(folder / "data" / "projects" / project),
        "settings": settings | {"eval --limit": EVAL_LIMIT, "limit": BACKEND_LIMIT},
        "annif": json.loads(scores.read_text()),
        "versions": versions,
    }
