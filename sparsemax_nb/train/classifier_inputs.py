"""Input checks of `Classifier`: features, texts, column names."""

import sys
import warnings

import numpy as np
import scipy.sparse

from ..core import check, sparse
from ..data import TextVectorizer, Tfidf, vectorizer
from ..data.tfidf import first_non_count
from .classifier_targets import CLASS, MATRIX, NAMES, checked_names, class_array, encode, is_uri
from .progress import Progress
from .wide_features import WideFeatures, is_pair


def feature_names(x):
    """Column names of a DataFrame, (F,) objects, if all are strings, else None; TypeError if only some are strings."""
    if scipy.sparse.issparse(x) or not hasattr(x, "columns"):
        return None
    names = np.array(list(x.columns), object)
    kinds = sorted({type(name).__name__ for name in names})
    if any(isinstance(name, str) for name in names) and len(kinds) > 1:
        raise TypeError(
            "Feature names are only supported if all input features have string names, but your input has "
            f"{kinds} as feature name / column name types; use X.columns = X.columns.astype(str)"
        )
    return names if kinds == ["str"] else None


def names_differ_message(known, names):
    """scikit-learn's message for columns that differ from those of the fit."""

    def listing(title, differing):
        differing = sorted(differing)
        return "".join(
            [f"{title}:\n", *(f"- {name}\n" for name in differing[:5]), "- ...\n" * (len(differing) > 5)]
            if differing
            else []
        )

    message = listing("Feature names unseen at fit time", names - known)
    message += listing("Feature names seen at fit time, yet now missing", known - names)
    rule = "The feature names should match those that were passed during fit.\n"
    return rule + (message or "Feature names must be in the same order as they were in fit.\n")


def checked_features(name, x):
    """(n, F) features: CSR, or a dense float array. Neither is copied; dense values are checked batch by batch."""
    if isinstance(x, (str, bytes)):
        raise TypeError(
            f"{name} must be a matrix or a sequence of texts, got {check.shown(x)}; use [text] for one text"
        )
    if hasattr(x, "__next__"):
        raise TypeError(f"{name} must be a sequence, got {type(x).__name__}, which is read only once; use list(X)")
    if isinstance(x, (list, tuple, np.ma.MaskedArray, np.matrix)):
        x = check.on_host(name, x)
    x = x if scipy.sparse.issparse(x) or isinstance(x, np.ndarray) else np.asarray(x)
    if x.dtype.kind == "c":
        raise ValueError(f"Complex data not supported: {name} is {x.dtype}")
    if scipy.sparse.issparse(x):
        x = sparse.valid_csr(name, x)
    elif x.ndim != 2:
        raise ValueError(f"{name} must be a matrix, got shape {x.shape}; Reshape your data: one row a point, or texts")
    elif x.dtype.kind != "f":
        try:
            x = x.astype(np.float32)
        except (TypeError, ValueError) as error:
            fix = "pass texts as a sequence, such as one column of a DataFrame"
            raise type(error)(f"{name} must contain numbers, without missing values: {error}; {fix}") from error
    if x.shape[1] < 1:
        raise ValueError(f"{name} has 0 feature(s) (shape={x.shape}) while a minimum of 1 is required.")
    return x


def checked_embeddings(name, x):
    """(n, d) float array with at least one column; values are checked batch by batch."""
    if scipy.sparse.issparse(x):
        raise TypeError(f"{name} must be a pair of words and a dense array, got {type(x).__name__} as second part")
    return checked_features(f"the embeddings of {name}", x)


def refuse_odd_pair(name, x):
    """TypeError for a tuple that seems to be a pair of words and embeddings, but whose second part is no matrix."""
    if is_pair(x) or not (isinstance(x, tuple) and len(x) == 2):
        return
    if any(scipy.sparse.issparse(part) or are_texts(part) for part in x):
        kinds = " and ".join(type(part).__name__ for part in x)
        raise TypeError(
            f"{name} must be a pair of texts or sparse features, and a dense array (n, d), in this order, got {kinds}; "
            "use np.asarray for the embeddings"
        )


def joined(name, words, dense):
    """`WideFeatures`, or the words alone if there are no embeddings; ValueError for different numbers of rows."""
    if dense is None:
        return words
    if words.shape[0] != dense.shape[0]:
        raise ValueError(
            f"{name} must have one embedding per row, in the order of the rows, got {words.shape[0]} rows and "
            f"{dense.shape[0]} embeddings"
        )
    return WideFeatures(words, dense)


def are_texts(x):
    """Whether features are texts: a list, tuple, 1-D array or Series that contains a str."""
    if scipy.sparse.issparse(x) or hasattr(x, "columns") or not (hasattr(x, "__iter__") and hasattr(x, "__len__")):
        return False
    if isinstance(x, (str, bytes, memoryview)) or (
        isinstance(x, np.ndarray) and (x.ndim != 1 or x.dtype.kind not in "UOT")
    ):
        return False
    return any(isinstance(text, str) for text in x)


class ClassifierInputs:
    """Mixin of `Classifier` that checks texts and features, and converts them to batches for the model."""

    def _new_vectorizer(self):
        return TextVectorizer(
            word_pairs=self.word_pairs,
            char_ngrams=self.char_ngrams,
            char_weight=1.0 if isinstance(self.char_weight, str) else self.char_weight,
            hash_bits=self.hash_bits,
        )

    def _inputs(self, x, y, names, validation):
        """Features and labels of the fit, and of the validation or None, as matrices; sets what describes them."""
        if validation is not None:
            validation = check.pair("validation", validation, "(X, y)")
        self.vectorizer_, self.name_counts_, self._name_points = None, None, None
        names = {} if names is None else checked_names(names)
        if names and self._target_form != NAMES:
            raise ValueError("names must be None unless y has lists of label names")
        is_dense_matrix, given = self._target_form == MATRIX and not scipy.sparse.issparse(y), y
        known = list(names) or getattr(self, "_first_classes", None)
        if known is not None and self._target_form == CLASS:
            known = np.unique(class_array("classes", known))
        y, self.classes_ = encode("y", y, self._target_form, known)
        self._target_dtype = None
        if is_dense_matrix:  # pandas converts columns that could have missing values to objects
            dtype = np.asarray(given).dtype
            self._target_dtype = dtype if dtype.kind in "biuf" else np.dtype(int)
        if self._target_form == NAMES and not len(self.classes_):
            raise ValueError("y must have at least one label, got empty lists only")
        self.label_names_, labels = None, self.classes_.tolist()
        if self._target_form == NAMES:
            self.label_names_ = [(names.get(label) or [label])[0] for label in labels]
        (x, dense), other_dense = self._words_and_embeddings("X", x), None
        if validation is not None:
            other_x, other_dense = self._words_and_embeddings("validation X", validation[0])
            if (dense is None) != (other_dense is None) or (
                dense is not None and dense.shape[1:] != other_dense.shape[1:]
            ):
                raise ValueError("validation X must have embeddings if X has them, of the same width")
            validation = other_x, validation[1]
        if are_texts(x):
            if validation is not None:
                validation = vectorizer.checked_texts("validation X", validation[0]), validation[1]
            self.vectorizer_ = self._new_vectorizer()
            x = vectorizer.checked_texts("X", x)
            with Progress(len(x), 0, self.progress and len(x) > vectorizer.TEXTS_PER_BLOCK, unit="text") as bar:
                x = self.vectorizer_._fit_transform(x, lambda n: bar.step(n=n))
            if self._target_form == NAMES:
                self._name_points = self._points_of_names(enumerate(labels), names)
                self.vectorizer_.extend([name for _, name in self._name_points])
                x.resize(x.shape[0], self.vectorizer_.n_features_)
        elif dense is not None:
            x = self._sparse_if_linear(checked_features("X", x), "linear")
        else:
            columns = feature_names(x)
            others = None if validation is None else feature_names(validation[0])
            if not (columns is None or others is None or list(columns) == list(others)):
                raise ValueError(f"validation: {names_differ_message(set(columns), set(others))}")
            if columns is not None:
                self.feature_names_in_ = columns
            x = self._sparse_if_linear(checked_features("X", x), self._wanted_architecture)
        if validation is not None:
            other_x, other_y = validation
            if self.vectorizer_ is not None:
                other_x = self.vectorizer_.transform(other_x)
            else:
                wanted = self._wanted_architecture if dense is None else "linear"
                other_x = self._sparse_if_linear(checked_features("validation X", other_x), wanted)
            known = None if self._target_form == MATRIX else self.classes_
            other_y = encode("validation y", other_y, self._target_form, known)[0]
            if self._target_form != MATRIX:  # names that only the validation has
                other_y = other_y[:, : len(self.classes_)]
            validation = joined("validation X", other_x, other_dense), other_y
        return joined("X", x, dense), y, validation

    def _words_and_embeddings(self, name, x):
        """The texts or features of x, and its embeddings or None."""
        if is_pair(x):
            if self.dense_columns:
                raise ValueError(f"{name} must be one matrix, not a pair, or dense_columns must be 0")
            return x[0], checked_embeddings(name, x[1])
        refuse_odd_pair(name, x)
        if not self.dense_columns:
            return x, None
        x = checked_features(name, x)
        check.integer("dense_columns", self.dense_columns, 1, x.shape[1] - 1, f" ({name} has {x.shape[1]} columns)")
        found = WideFeatures.from_matrix(x, self.dense_columns)
        return found.words, found.dense

    @property
    def _wanted_architecture(self):
        """The parameter `architecture`; 'linear' if it is 'auto' and the fit the first call of `partial_fit`."""
        is_partial = hasattr(self, "_first_classes") and self.architecture == "auto"
        return "linear" if is_partial else self.architecture

    @staticmethod
    def _sparse_if_linear(x, architecture):
        """Checked features; dense ones as CSR for the linear architecture."""
        if architecture != "linear" or scipy.sparse.issparse(x):
            return x
        return checked_features("X", scipy.sparse.csr_matrix(x))

    def _points_of_names(self, labels, names):
        """(id, name) of each name of the labels (id, label) that is a training point."""
        if not self.name_points:
            return []
        return [(i, name) for i, label in labels for name in names.get(label, [] if is_uri(label) else [label])]

    def _with_name_points(self, x, y, rows):
        """Features, labels and the ids of the training rows, with one row per name of a label at the end."""
        self.name_counts_ = np.zeros(y.shape[1], np.int64)
        if not self._name_points:
            return x, y, rows
        labels, texts = zip(*self._name_points, strict=True)
        named = self.vectorizer_.transform(texts)
        known = np.diff(named.indptr) > 0
        named, labels = named[known], np.array(labels)[known]
        if isinstance(x, WideFeatures):
            x = x.extended(named)
        else:
            x = scipy.sparse.vstack([x, named], "csr")
        self.name_counts_ += np.bincount(labels, minlength=y.shape[1])
        of_names = scipy.sparse.csr_matrix(
            (np.ones(len(labels), np.float32), labels, np.arange(len(labels) + 1)), shape=(len(labels), y.shape[1])
        )
        rows = np.concatenate([rows, y.shape[0] + np.arange(len(labels))])
        return x, scipy.sparse.vstack([y, of_names], "csr"), rows

    @staticmethod
    def _texts(x):
        """A list of str; TypeError for anything else."""
        if scipy.sparse.issparse(x) or getattr(x, "ndim", 1) != 1 or not hasattr(x, "__len__"):
            raise TypeError(f"X must be a sequence of texts as in fit, got {type(x).__name__}")
        return vectorizer.checked_texts("X", x)

    def _features(self, x):
        """Checked features, as a matrix or `WideFeatures`; TypeError or ValueError unless they are as in the fit."""
        if hasattr(self, "n_features_in_") and self.n_dense_:
            return self._wide_features(x)
        if is_pair(x):
            raise TypeError("X must not be a pair: the model was fitted without embeddings; pass the first part only")
        if self.vectorizer_ is not None:
            return self.vectorizer_.transform(self._texts(x))
        if are_texts(x):
            raise TypeError("X must have features as in fit, got texts; use the model's own vectorizer before")
        names, x = feature_names(x), self._sparse_if_linear(checked_features("X", x), self.architecture_)
        if hasattr(self, "n_features_in_"):
            self._check_feature_names(names)
            if x.shape[1] != self.n_features_in_:
                raise ValueError(
                    f"X has {x.shape[1]} features, but Classifier is expecting {self.n_features_in_} features as input"
                )
            if self.is_dense_ == scipy.sparse.issparse(x):
                kind, fix = (
                    ("a dense array", "X.toarray()")
                    if self.is_dense_
                    else ("a SciPy sparse matrix", "scipy.sparse.csr_matrix(X)")
                )
                raise TypeError(f"X must be {kind} as in fit, got {type(x).__name__}; use {fix}")
        return x

    def _wide_features(self, x):
        """Checked `WideFeatures`; TypeError or ValueError unless they are like those of the fit."""
        if not (is_pair(x) or self.dense_columns):
            refuse_odd_pair("X", x)
            raise TypeError(
                f"X must be a pair (words, embeddings of width {self.n_dense_}) as in fit, got {type(x).__name__}; "
                "without embeddings, pass zeros"
            )
        words, dense = self._words_and_embeddings("X", x)
        if self.vectorizer_ is not None:
            words = self.vectorizer_.transform(self._texts(words))
        elif are_texts(words):
            raise TypeError("X must have features as in fit, got texts; use the model's own vectorizer before")
        else:
            words = self._sparse_if_linear(checked_features("X", words), "linear")
        if words.shape[1] != self._n_sparse or dense.shape[1] != self.n_dense_:
            raise ValueError(
                f"X must have {self._n_sparse} sparse features and embeddings of width {self.n_dense_}, got "
                f"{words.shape[1]} and {dense.shape[1]}"
            )
        return joined("X", words, dense)

    def _check_feature_names(self, names):
        """ValueError unless a DataFrame has the columns of the fit, in the same order; the rules are scikit-learn's."""
        known = getattr(self, "feature_names_in_", None)
        if (known is None) != (names is None):
            now, fitted = ("does not have valid", "with") if names is None else ("has", "without")
            message = f"X {now} feature names, but Classifier was fitted {fitted} feature names"
            warnings.warn(message, UserWarning, stacklevel=4)
        elif known is not None and list(names) != list(known):
            raise ValueError(names_differ_message(set(known), set(names)))

    def _fitted_tfidf(self, x, validation):
        """A `Tfidf` fitted to the training rows `x`, or None if features are used as they are.

        `validation` is a pair of features and labels, or None.
        """
        if not self.tfidf or self.vectorizer_ is not None:
            return None
        if isinstance(self.tfidf, str) and (other := first_non_count(x)) is not None:
            if self.progress:
                print(
                    f"sparsemax-nb: X has weights, not counts (one is {other:g}), which are used as they are; "
                    "set tfidf=True or False to decide otherwise",
                    file=sys.stderr,
                )
            return None
        if validation is not None and (other := first_non_count(validation[0])) is not None:
            raise ValueError(f"validation X must have counts like X, got {other:g}; use tfidf=False for weights")
        return Tfidf().fit(x)

    def _batch(self, x, rows):
        """The features of some rows (a slice or ids) as the model takes them; only these rows are copied."""
        if isinstance(x, WideFeatures):
            return WideFeatures(self._batch(x.words, rows), self._batch(x.dense, rows))
        is_dense = isinstance(x, np.ndarray)
        part = x if isinstance(rows, slice) and rows == slice(0, x.shape[0]) else x[rows]
        with np.errstate(over="ignore"):  # numbers too large for float32 are reported below
            if is_dense:
                part = np.ascontiguousarray(part, np.float32)
            else:
                part = part.astype(np.float32, copy=False) if self.tfidf_ is None else self.tfidf_._weights(part)
        if not np.isfinite(part if is_dense else part.data).all():
            ids = np.arange(x.shape[0])[rows]
            bad = next(row for row, values in zip(ids, part, strict=True) if not np.isfinite(values.sum()))
            what = "the embeddings" if is_dense and self.n_dense_ else "X"
            raise ValueError(f"{what} must be finite as float32, got NaN or infinity in row {bad}")
        return part
