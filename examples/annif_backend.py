"""A backend for Annif (https://annif.org), the subject-indexing tool of libraries, that uses our linear classifier.

Install both in one environment: ``pip install annif sparsemax_nb``. Annif 1.4 has no plugins, so this file adds its
backend to Annif's registry, and then is the command ``annif``:

    python examples/annif_backend.py load-vocab subjects vocabulary.tsv --language en
    python examples/annif_backend.py train linear-en train.tsv
    echo "a history of cats" | python examples/annif_backend.py suggest linear-en
    python examples/annif_backend.py eval linear-en test.tsv
    python examples/annif_backend.py learn linear-en more.tsv

This is a project for projects.cfg. With an analyzer, Annif splits texts and labels into stems; without one, the
classifier gets the raw texts. Parameters of the classifier (C, slack, frequency, epochs) are optional:

    [linear-en]
    name=Linear classifier, English
    language=en
    backend=sparsemax_nb
    vocab=subjects
    analyzer=snowball(english)
    limit=100
    allow_learn=True
"""

from pathlib import Path

import annif.backend
import annif.cli
import numba
import numpy as np
import scipy.sparse
from annif.backend.backend import AnnifLearningBackend
from annif.exception import NotInitializedException, NotSupportedException
from annif.suggestion import SuggestionBatch

from sparsemax_nb.train import Classifier

#: Parameters of the classifier that a project may set.
PARAMETERS = {"C": float, "slack": float, "frequency": float, "epochs": int}


class LinearBackend(AnnifLearningBackend):
    """Annif calls `initialize`, `train`, `learn` and `suggest`; labels of the classifier are URIs of subjects."""

    name = "sparsemax_nb"
    model = None

    @property
    def path(self):
        """The model file, in the project's folder."""
        return Path(self.datadir, "model.safetensors")

    def initialize(self, parallel=False):
        """Load the model, once per process."""
        if self.model is None:
            if not self.path.exists():
                raise NotInitializedException(f"{self.path} not found", backend_id=self.backend_id)
            self.model = Classifier.load(self.path)

    def text(self, text):
        """The text for the classifier: stems if the project has an analyzer."""
        return " ".join(self.project.analyzer.tokenize_words(text)) if self.project.analyzer_spec else text

    def read(self, corpus):
        """The texts of a corpus and the URIs of their subjects; documents without subjects are left out."""
        if corpus == "cached":
            raise NotSupportedException("training from cached data is not supported", backend_id=self.backend_id)
        documents = [document for document in corpus.documents if document.subject_set]
        if not documents:
            raise NotSupportedException("the corpus has no documents with subjects", backend_id=self.backend_id)
        subjects = self.project.subjects
        uris = [[subjects[i].uri for i in document.subject_set] for document in documents]
        return [self.text(document.text) for document in documents], uris

    def _train(self, corpus, params, jobs=0):
        texts, uris = self.read(corpus)
        if jobs:
            numba.set_num_threads(min(jobs, numba.config.NUMBA_NUM_THREADS))
        subjects = [subject for _, subject in self.project.subjects.active]
        labels = {subject.uri: self.text(subject.labels.get(self.project.vocab_lang) or "") for subject in subjects}
        names = {uri: [label] for uri, label in labels.items() if label}  # an analyzer may leave nothing of a label
        settings = {name: kind(params[name]) for name, kind in PARAMETERS.items() if name in params}
        self.model = Classifier(**settings).fit(texts, uris, names=names)
        self.model.save(self.path)

    def _learn(self, corpus, params):
        self.initialize()
        self.model.partial_fit(*self.read(corpus))
        self.model.save(self.path)

    def _suggest_batch(self, documents, params):
        subjects, uris = self.project.subjects, self.model.classes_
        texts = [self.text(document.text) for document in documents]
        found = self.model.predict_proba(texts, k=min(int(params["limit"]), len(uris))).tocoo()
        ids = {label: subjects.by_uri(uris[label], warnings=False) for label in np.unique(found.col)}
        columns = np.array([-1 if ids[label] is None else ids[label] for label in found.col], int)
        kept = (columns >= 0) & (found.data > 0)
        entries, shape = (found.data[kept], (found.row[kept], columns[kept])), (len(documents), len(subjects))
        return SuggestionBatch(scipy.sparse.csr_array(entries, shape=shape, dtype=np.float32))


annif.backend._backend_fns[LinearBackend.name] = lambda: LinearBackend  # Annif 1.4 has no public function for this

if __name__ == "__main__":
    annif.cli.cli()
