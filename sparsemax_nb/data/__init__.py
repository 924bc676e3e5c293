"""Data: readers and writers, bundled corpora, TF-IDF, synthetic data."""

from .corpora import Corpus, load
from .fingerprint import fingerprint
from .labeled_texts import LabeledTexts, read_texts, read_vocabulary
from .readers import DataError, XCData, read_names, read_xc, write_xc
from .sequences import Sequences, leave_last_out, load_sequences
from .synthetic import bag_of_words, hierarchy, power_law_labels
from .text import TextCorpus, Vocabulary, load_text, read_words
from .tfidf import Tfidf
from .vectorizer import TextVectorizer

__all__ = [
    "Corpus",
    "DataError",
    "LabeledTexts",
    "Sequences",
    "TextCorpus",
    "TextVectorizer",
    "Tfidf",
    "Vocabulary",
    "XCData",
    "bag_of_words",
    "fingerprint",
    "hierarchy",
    "leave_last_out",
    "load",
    "load_sequences",
    "load_text",
    "power_law_labels",
    "read_names",
    "read_texts",
    "read_vocabulary",
    "read_words",
    "read_xc",
    "write_xc",
]
