"""Explanations of predictions: what each word or feature of a row, and each hidden feature, adds to a label's score."""

import os
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse

from ..core import check
from ..core.device import asarray, to_numpy
from . import curves
from .classifier_inputs import are_texts
from .classifier_predictions import CANDIDATES
from .classifier_targets import CLASS
from .estimator import SampledEstimator
from .layers import Inputs
from .wide_features import WideFeatures

#: Characters of the longest bar in a printed explanation, and of the longest names in it and in a plot.
BAR, MAX_NAME = 24, 40


@dataclass(frozen=True)
class Explanation:
    """Why a label has its score: ``score = sum of contributions + other + sum of terms``.

    Contributions are computed in float64 from the weights of the model, so that the equation holds up to the rounding
    of the score, which is a float32.

    Attributes
    ----------
    label : object
        Element of `classes_`: a label name or class, or the number of a column.
    name : str
        Name of the label, or the label as text if the model has no names.
    score : float
        As in `Classifier.top_k`.
    probability : float or None
        As in `Classifier.predict_proba`; None without calibration.
    contributions : tuple of (str, float)
        Names of words, word pairs or features, or for a kernel machine of training points, such as 'point 17'; and what
        they add to the score: largest magnitude first, without zeros.
    other : float
        Sum of the contributions that are not listed.
    terms : dict of str to float
        What does not depend on single features, without zeros: 'bias'; 'frequency', the prior of a linear layer;
        'embedding', what the embedding adds to the score of the words; 'co-occurrence', the change by reranking;
        'hidden biases', the biases of a network's hidden layers.
    hidden : tuple of (str, float)
        For a network with hidden layers: the hidden features that the label is connected to, such as 'hidden 17', and
        what they add to the score. They are another view of the same score:
        ``score = sum of hidden + hidden_other + terms['bias']``.
    hidden_other : float
        Sum of the hidden features that are not listed.

    Examples
    --------
    >>> from sparsemax_nb.train import Classifier, Explanation
    >>> texts, labels = ["old maps", "old books", "new maps"] * 9, [["map"], ["book"], ["map", "new"]] * 9
    >>> found = Classifier(progress=False).fit(texts, labels).explain("maps", label="map")
    >>> isinstance(found, Explanation), found.contributions[0][0]
    (True, 'maps')
    >>> total = sum(value for _, value in found.contributions) + found.other + sum(found.terms.values())
    >>> abs(total - found.score) < 1e-5
    True
    """

    label: Any
    name: str
    score: float
    probability: float | None
    contributions: tuple[tuple[str, float], ...]
    other: float
    terms: dict[str, float]
    hidden: tuple[tuple[str, float], ...] = ()
    hidden_other: float = 0.0

    def __str__(self):
        text = f"{_printable(self.name)}: {self._summary()}\n" + _table(self._rows())
        if not self.hidden:
            return text
        hidden = [
            *self.hidden,
            *_if_not_zero("other", self.hidden_other),
            *_if_not_zero("bias", self.terms.get("bias")),
        ]
        return f"{text}\n  The same score by hidden features:\n{_table(hidden)}"

    def _summary(self):
        probability = "" if self.probability is None else f", probability {self.probability:.2f}"
        return f"score {_number(self.score)}{probability}"

    def _rows(self):
        """(name, value) of everything that the score is the sum of."""
        return [*self.contributions, *_if_not_zero("other", self.other), *self.terms.items()]

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw contributions and terms as horizontal bars, with matplotlib.

        Parameters
        ----------
        path : path
            PNG, SVG or PDF by its suffix; replaced once it is complete.

        Raises
        ------
        ImportError
            matplotlib is not installed.
        ValueError
            Another suffix.
        OSError
            The file cannot be written.

        Examples
        --------
        >>> import tempfile
        >>> from pathlib import Path
        >>> from sparsemax_nb.train import Classifier
        >>> texts, labels = ["old maps", "old books", "new maps"] * 9, [["map"], ["book"], ["map", "new"]] * 9
        >>> model = Classifier(progress=False).fit(texts, labels)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.explain("old maps", label="map").plot(Path(folder, "map.svg"))
        ...     Path(folder, "map.svg").exists()
        True
        """
        file = os.fspath(check.path("path", path))
        if not file.endswith(curves.FORMATS):
            raise ValueError(f"path must end in .png, .svg or .pdf, got {file}")
        plt, rows = curves.pyplot(), self._rows()
        values, n_features = [value for _, value in rows], len(self.contributions)
        colors = [curves.BLUE if value > 0 else curves.ORANGE for value in values[:n_features]]
        colors += [curves.GREY] * (len(rows) - n_features)
        figure, axes = plt.subplots(figsize=(8, 1.6 + 0.32 * max(len(rows), 2)), layout="constrained")
        bars = axes.barh(range(len(rows)), values, color=colors)
        axes.bar_label(bars, [_number(value, "+") for value in values], padding=3, fontsize=9)
        axes.set_yticks(range(len(rows)), [_printable(name) for name, _ in rows])
        for text in axes.get_yticklabels():
            text.set_parse_math(False)  # a dollar sign in a name begins no formula
        axes.set_title(f"{_printable(self.name)}\n{self._summary()}", loc="left").set_parse_math(False)
        axes.set(xlabel="contribution to the score")
        axes.invert_yaxis()  # the first row at the top
        axes.margins(x=0.15)  # room for the numbers
        axes.axvline(0, color="black", linewidth=0.8)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        curves.write_figure(figure, file)
        plt.close(figure)


class ClassifierExplanations(SampledEstimator):
    """Mixin of `Classifier` with the method that explains a prediction."""

    def explain(self, X: Any, label: Any = None, n: int = 10) -> Explanation | list[Explanation]:
        """Return what each word or feature of one text, or of one row of features, adds to the score of a label.

        Parameters
        ----------
        X : str, or (F,) or (1, F) array or (1, F) SciPy CSR matrix, or pair
            One text, or one row of features as in `fit`; for 'wide-and-deep' a pair of it and an embedding, (d,).
        label : label, optional
            Element of `classes_`. By default the labels that `predict` returns are explained, or the best label if it
            returns none.
        n : int
            Number of contributions to list, those of the largest magnitude, and of hidden features of a network.

        Returns
        -------
        explanation : Explanation, or list of Explanation
            One for `label`; without it a list, best label first.

        Raises
        ------
        TypeError, ValueError
            The model is not fitted yet; several texts or rows, or features of another kind or width than in `fit`, or
            not finite; an unknown label; n below 1.

        Notes
        -----
        The contribution of a feature is its value (after TF-IDF) times its weight. In a network it is its value times
        the derivative of the score with respect to it; the layers are linear as long as the same ReLUs are active, so
        the contributions and biases still add up to the score.

        The contribution of a word is that of its own feature and of its character n-grams. An n-gram that occurs
        several times in the text is divided among its occurrences. Word pairs are listed on their own. Words that the
        model does not know, or that the label is not connected to, add nothing and are not listed.

        Source: contributions of a linear model, and gradient times input: A. Shrikumar, P. Greenside, A. Shcherbina,
        A. Kundaje, "Not just a black box", arXiv 1605.01713. How n-grams are divided is our choice.

        Examples
        --------
        >>> from sparsemax_nb.train import Classifier
        >>> texts, labels = ["old maps", "old books", "new maps"] * 9, [["map"], ["book"], ["map", "new"]] * 9
        >>> model = Classifier(progress=False).fit(texts, labels)
        >>> model.explain("a map")[0].label
        'map'
        >>> [name for name, _ in model.explain("a book, and maps", label="book", n=2).contributions]
        ['book', 'maps']
        """
        self._check_fitted()
        check.integer("n", n, 1)
        x = self._one_row(X)
        wanted = None if label is None else self._id_of(label)
        scores, ids = self._top_k(x, self.n_labels_)
        explained = self._explained(scores, ids) if wanted is None else [wanted]
        of_labels = self._class_probabilities if self._target_form == CLASS else self._probabilities
        probabilities = None if self.calibration_ is None else of_labels(scores, ids)
        row = self._batch(x, slice(0, 1))
        names, shares, effects_on = self._effects(X, row)
        found = []
        for i in explained:
            position = int(np.flatnonzero(ids[0] == i)[0])
            effects, terms, hidden = effects_on(int(i), scores[0, position])
            contributions, other = _largest(names, effects if shares is None else shares @ effects, n)
            hidden, hidden_other = _largest([f"hidden {j}" for j in hidden[0]], hidden[1], n)
            known = self.classes_[i : i + 1].tolist()[0]
            found.append(
                Explanation(
                    known,
                    str(known if self.label_names_ is None else self.label_names_[i]),
                    float(scores[0, position]),
                    None if probabilities is None else float(probabilities[0, position]),
                    contributions,
                    other,
                    {name: value for name, value in terms.items() if value},
                    hidden,
                    hidden_other,
                )
            )
        return found if label is None else found[0]

    def _effects(self, given, row):
        """Names of what is explained, their shares of the features or None, and a function, for one row of features."""
        if self.architecture_ == "kernel":
            return self._kernel_effects(row)
        if self.is_dense_:
            columns, values = np.arange(row.shape[1]), row[0].astype(np.float64)
        else:
            words = (row.words if self.n_dense_ else row).copy()
            words.sum_duplicates()
            columns, values = words.indices, words.data.astype(np.float64)
            row = WideFeatures(words, row.dense) if self.n_dense_ else words
        effects_on = self._network_effects if self.architecture_ == "network" else self._linear_effects
        text = given[0] if isinstance(given, tuple) else given
        return *self._parts(text, columns), effects_on(row, columns, values)

    def _one_row(self, x):
        """Checked features of one text or one row, as one row of what `_features` returns."""
        if self.n_dense_ and not self.dense_columns:
            if not (isinstance(x, tuple) and len(x) == 2):
                raise TypeError(f"X must be a pair (text or row of features, embedding), got {type(x).__name__}")
            words = [x[0]] if isinstance(x[0], str) else x[0]
            if not (isinstance(x[0], str) or scipy.sparse.issparse(words) or hasattr(words, "columns")):
                words = np.atleast_2d(check.on_host("X", words))
            x = self._features((words, check.on_host("the embedding", x[1]).reshape(1, -1)))
            if x.shape[0] != 1:
                raise ValueError(f"X must be one row, got {x.shape[0]}")
            return x
        if self.vectorizer_ is not None:
            if not isinstance(x, str):
                raise TypeError(f"X must be one text, got {type(x).__name__}; call explain once per text")
            return self._features([x])
        if isinstance(x, str):
            raise TypeError("X must be one row of features as in fit, got a text")
        if isinstance(x, (list, tuple)) and not are_texts(x):
            x = check.on_host("X", x)
        if getattr(x, "ndim", None) == 1 and not scipy.sparse.issparse(x) and not are_texts(x):
            x = check.on_host("X", x).reshape(1, -1)
        x = self._features(x)
        if x.shape[0] != 1:
            raise ValueError(f"X must be one row of features, got {x.shape[0]} rows; use X[i : i + 1]")
        return x

    def _id_of(self, label):
        """The position of a label in `classes_`; ValueError for an unknown one."""
        known = self.classes_.tolist()
        if not isinstance(label, Hashable) or label not in known:
            raise ValueError(f"label must be a label of the model, an element of classes_, got {check.shown(label)}")
        return known.index(label)

    def _explained(self, scores, ids):
        """The ids of the predicted labels, or of the best one if there are none, from the (1, L) scores and ids."""
        best = slice(0, 1)
        if self._target_form == CLASS:
            return ids[0, best]
        candidates = slice(0, CANDIDATES)
        chosen = self._chosen(scores[:, candidates], ids[:, candidates], None, None, None)[0]
        return ids[0, candidates][chosen] if chosen.any() else ids[0, best]

    def _parts(self, text, columns):
        """The names of what is explained, and their shares of the features `columns` (ascending), or None.

        For a text these are words and pairs, and a sparse matrix (names, columns) whose columns sum to 1.
        """
        if self.vectorizer_ is None:
            names = getattr(self, "feature_names_in_", None)
            return [f"feature {i}" if names is None else names[i] for i in columns], None
        parts = self.vectorizer_.parts(text)
        number = {name: i for i, name in enumerate(dict.fromkeys(name for name, _ in parts))}
        rows = np.array([number[name] for name, found in parts for _ in found], np.int64)
        position = np.searchsorted(columns, np.concatenate([np.empty(0, np.int64), *(found for _, found in parts)]))
        shares = 1 / np.bincount(position, minlength=len(columns))[position]
        return list(number), scipy.sparse.csr_matrix((shares, (rows, position)), shape=(len(number), len(columns)))

    # Both functions return a function of a label's id and score: what each of the `columns` adds to the score, the
    # terms by name, and the ids and effects of the hidden features.

    def _linear_effects(self, row, columns, values):
        model, arrays = self.network_, self.network_.layer.arrays
        at = asarray(columns, model.device, np.int64)
        starts, ends, dense = map(to_numpy, (arrays.indptr[at], arrays.indptr[at + 1], arrays.dense[at]))
        plain = embedded = None
        if self.n_dense_:
            embedded = to_numpy(model.added(*model.parts(row.dense)))[0]
        if model.pairs is not None:
            plain_scores, ids = model.plain().top_k(row, self.n_labels_)
            plain = np.empty(self.n_labels_, np.float32)
            plain[to_numpy(ids)[0]] = to_numpy(plain_scores)[0]

        def effects_on(label, score):
            weights = np.zeros(len(columns))
            for i, (start, end, offset) in enumerate(zip(starts, ends, dense, strict=True)):
                slot = offset + label
                if offset < 0:
                    labels = to_numpy(arrays.labels[start:end])
                    slot = start + np.searchsorted(labels, label)
                    if slot == end or labels[slot - start] != label:
                        continue
                weights[i] = float(arrays.values[slot])
            terms = {"bias": float(arrays.bias[label])}
            if model.prior is not None:
                terms["frequency"] = float(model.prior[label])
            if embedded is not None:
                terms["embedding"] = float(embedded[label])
            if plain is not None:
                terms["co-occurrence"] = float(score) - float(plain[label])
            return values * weights, terms, ((), np.empty(0))

        return effects_on

    def _kernel_effects(self, row):
        model, layer = self.network_, self.network_.layer
        neighbors, kernels = (to_numpy(found)[0] for found in model.neighbors(row))
        duals = layer.duals[neighbors].tocsc()

        def effects_on(label, score):
            effects = kernels.astype(np.float64) * duals[:, [label]].toarray()[:, 0]
            return effects, {"bias": float(layer.bias[label])}, ((), np.empty(0))

        return [f"point {i}" for i in neighbors], None, effects_on

    def _network_effects(self, row, columns, values):
        network, at = self.network_, asarray(columns, self.network_.device, np.int64)
        outputs = [to_numpy(h)[0].astype(np.float64) for h in network.hidden_outputs(row)]

        def effects_on(label, score):
            inputs, weights, bias = network.output.weights_of(label)
            gradient, of_biases = np.zeros(network.width), 0.0
            gradient[inputs] = weights
            for layer, h in zip(reversed(network.hidden), reversed(outputs), strict=True):
                if isinstance(layer, Inputs):
                    break
                matrix, biases = layer.parameters.values()
                gradient = gradient * (h > 0)
                of_biases += float(gradient @ to_numpy(biases))
                matrix = matrix if layer is not network.hidden[0] else matrix[at]  # a row per feature
                gradient = to_numpy(matrix) @ gradient
            has_hidden = not isinstance(network.hidden[-1], Inputs)
            hidden = (inputs, outputs[-1][inputs] * weights) if has_hidden else ((), np.empty(0))
            return values * gradient, {"hidden biases": of_biases, "bias": bias}, hidden

        return effects_on


def _largest(names, values, n):
    """The n (name, value) of the largest magnitude, without zeros, and the sum of the other values."""
    order = np.argsort(-np.abs(values), kind="stable")
    found = tuple((str(names[i]), float(values[i])) for i in order[:n] if values[i])
    return found, float(values[order[n:]].sum())


def _if_not_zero(name, value):
    return [(name, value)] if value else []


def _number(value, sign=""):
    return f"{value:{sign}.3f}" if abs(value) < 1e5 else f"{value:{sign}.1e}"


def _printable(name):
    """A name on one line: control characters escaped, the end cut off if it is long."""
    name = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 3] + "..."


def _table(rows):
    """A line for each row (name, value), with a bar: '+' speaks for the label, '-' against it."""
    rows = [(_printable(name), value, _number(value, "+")) for name, value in rows]
    largest = max((abs(value) for _, value, _ in rows), default=1)
    widths = [max((len(row[i]) for row in rows), default=0) for i in (0, 2)]
    lines = []
    for name, value, text in rows:
        bar = ("+" if value > 0 else "-") * round(BAR * abs(value) / largest)
        lines.append(f"  {name:{widths[0]}}  {text:>{widths[1]}}  {bar}".rstrip())
    return "\n".join(lines)
