"""Optimizers. They store the state of each parameter array; the update formulas are in ``core/formulas.py``."""

import math
from collections.abc import Callable

import numpy as np

from .core import check
from .core.annotations import Array
from .core.device import backend_of, device_of, module_of, zeros
from .core.formulas import ADAM_KIND, SGD_KIND, Moments, Rates


class _State:
    """The moments of a parameter array, the number of its steps, and the factor of its learning rate.

    It keeps a reference to the array: its `id`, by which the state is found, stays unique only while it exists.
    """

    def __init__(self, array, moments):
        self.array, self.moments = array, moments
        self.count, self.factor = 0, 1.0


def _as_rates(*rates):
    """`Rates` as float32; ValueError if the learning rate is too large."""
    if rates[0] > check.LARGEST:
        raise ValueError(
            f"learning_rate times its factor and bias correction must fit float32, got {rates[0]:g}; lower it"
        )
    return Rates(*map(np.float32, rates))


class _Optimizer:
    """State per array: each array counts its own steps, so layers may be updated in any order."""

    kind: int  # the code of the update formula

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = check.number("learning_rate", learning_rate, 0, math.inf, open_ends=True)
        self._states: dict[int, _State] = {}

    def _new_moments(self, array):
        """Zero `Moments` for a parameter array."""
        raise NotImplementedError

    def _rates(self, learning_rate, count):
        """`Rates` of an array's step number `count`, from 1."""
        raise NotImplementedError

    def __getstate__(self):
        """Attributes without the keys of the states: the `id` of an array changes in a copy or a pickle."""
        return self.__dict__ | {"_states": list(self._states.values())}

    def __setstate__(self, attributes):
        self.__dict__.update(attributes)
        self._states = {id(state.array): state for state in self._states}

    def state_of(self, array: Array) -> _State:
        """The state of a parameter array, created with zeros on first use.

        The state belongs to the array object: pass the same object every time, not a new view of it.

        Parameters
        ----------
        array : (...) float32
            A parameter, on either device. The optimizer keeps a reference to it.

        Returns
        -------
        state : object
            ``moments``, m and v shaped like the array (empty for SGD); ``count``, the number of steps so far;
            ``factor``, of the learning rate.

        Raises
        ------
        TypeError
            array is not an array.

        Examples
        --------
        >>> import numpy as np
        >>> from sparsemax_nb import Adam
        >>> w, adam = np.ones(2, np.float32), Adam()
        >>> adam.step(w, np.ones(2, np.float32))
        >>> adam.state_of(w).count, adam.state_of(w).moments.m.shape
        (1, (2,))
        """
        check.same_device(array=array)
        if id(array) not in self._states:
            self._states[id(array)] = _State(array, self._new_moments(array))
        return self._states[id(array)]

    def replace(self, old: Array, new: Array, take: Callable[[Array], Array]) -> None:
        """Replace the parameter array `old` by `new`, which inherits its number of steps and its moments.

        Parameters
        ----------
        old : (...) float32
            A parameter. Nothing happens if it has no state yet.
        new : (...) float32
            The parameter that replaces it.
        take : callable
            ``take(moment)`` returns the new moment, shaped like `new`: the operation that made `new` from `old`.

        Raises
        ------
        TypeError
            Not arrays on one device, or `take` is not a function.

        Examples
        --------
        >>> import numpy as np
        >>> from sparsemax_nb import Adam
        >>> w, adam = np.array([1, 2, 3], np.float32), Adam()
        >>> adam.step(w, np.array([1, 0, 0], np.float32))
        >>> kept = w[:2].copy()
        >>> adam.replace(w, kept, lambda moment: moment[:2])
        >>> adam.state_of(kept).count, adam.state_of(kept).moments.m.round(3)
        (1, array([0.1, 0. ], dtype=float32))
        """
        check.same_device(old=old, new=new)
        state = self._states.get(id(old))
        if state is not None:
            if not callable(take):
                raise TypeError(f"take must be a function of a moment, got {type(take).__name__}")
            moved = _State(new, type(state.moments)(*map(take, state.moments)))
            moved.count, moved.factor = state.count, state.factor
            del self._states[id(old)]
            self._states[id(new)] = moved

    def check_writable(self, **arrays: Array) -> None:
        """Check that parameter arrays and their moments can be written to, because a step updates both.

        Parameters
        ----------
        **arrays : (...) float32
            Parameters by name. No state is created for arrays that have none yet.

        Raises
        ------
        ValueError
            An array or its moments are read-only; the message names the array.

        Examples
        --------
        >>> import numpy as np
        >>> from sparsemax_nb import Adam
        >>> Adam().check_writable(w=np.ones(2, np.float32))
        """
        for name, array in arrays.items():
            check.writable(name, array)
            state = self._states.get(id(array))
            for moment in () if state is None else state.moments:
                check.writable(f"the optimizer's moments of {name}", moment)

    def begin_step(self, array: Array) -> tuple[int, Rates, Moments]:
        """The arguments of the update kernel for the next step of `array`.

        Parameters
        ----------
        array : (...) float32
            The parameter to update.

        Returns
        -------
        kind : int
            The code of the formula in ``core/formulas.py``.
        rates : tuple of float32
            Learning rate and constants, with the bias corrections of the next step.
        moments : tuple of (...) float32
            m and v, which the kernel updates in place.

        Raises
        ------
        TypeError, ValueError
            array is not an array; a learning rate that overflows float32 with its factor and bias correction.

        Examples
        --------
        >>> import numpy as np
        >>> from sparsemax_nb import SGD
        >>> w, sgd = np.ones(2, np.float32), SGD(learning_rate=0.5)
        >>> kind, rates, moments = sgd.begin_step(w)
        >>> float(rates[0])
        0.5
        """
        known = self._states.get(id(array))
        count, factor = (0, 1.0) if known is None else (known.count, known.factor)
        rates = self._rates(self.learning_rate * factor, count + 1)
        return self.kind, rates, self.state_of(array).moments

    def scale_rate(self, array: Array, factor: float) -> None:
        """Set the learning rate of `array` to `factor` times that of the optimizer.

        Parameters
        ----------
        array : (...) float32
            A parameter.
        factor : float
            Not negative.

        Raises
        ------
        TypeError, ValueError
            factor is not a number, negative or not finite.

        Examples
        --------
        >>> import numpy as np
        >>> from sparsemax_nb import SGD
        >>> w, sgd = np.zeros(1, np.float32), SGD(learning_rate=0.5)
        >>> sgd.scale_rate(w, 10)
        >>> sgd.step(w, np.ones(1, np.float32))
        >>> w
        array([-5.], dtype=float32)
        """
        factor = check.number("factor", factor, 0, math.inf)
        self.state_of(array).factor = factor

    def end_step(self, *arrays: Array) -> None:
        """Count one step for each array, after the kernel for which `begin_step` was called.

        Parameters
        ----------
        *arrays : (...) float32
            Parameters.

        Raises
        ------
        TypeError
            One of them is not an array. No step has been counted.

        Examples
        --------
        >>> import numpy as np
        >>> from sparsemax_nb import Adam
        >>> w, adam = np.ones(2, np.float32), Adam()
        >>> _ = adam.begin_step(w)
        >>> adam.end_step(w)
        >>> adam.state_of(w).count
        1
        """
        for state in [self.state_of(array) for array in arrays]:
            state.count += 1

    def step(self, array: Array, gradient: Array) -> None:
        """Update a parameter array in place with its gradient.

        Parameters
        ----------
        array : (...) float32
            C-contiguous; overwritten.
        gradient : (...) float32
            Of the same shape, on the same device.

        Raises
        ------
        TypeError, ValueError
            Wrong dtype, shape, layout or device; an array that is read-only.

        Examples
        --------
        >>> import numpy as np
        >>> from sparsemax_nb import SGD
        >>> w = np.array([1.0, -1.0], np.float32)
        >>> SGD(learning_rate=0.5).step(w, np.array([1.0, 2.0], np.float32))
        >>> w
        array([ 0.5, -2. ], dtype=float32)
        """
        device = check.same_device(array=array, gradient=gradient)
        native = check.array("array", array, np.float32, array.shape)  # the state belongs to the object `array`
        gradient = check.array("gradient", gradient, np.float32, array.shape)
        self.check_writable(array=array)
        kind, rates, moments = self.begin_step(array)
        flat = Moments(moments.m.reshape(-1), moments.v.reshape(-1))
        backend_of(device, "optimizers").update(kind, native.reshape(-1), gradient.reshape(-1), flat, rates)
        self.end_step(array)

    def step_rows(self, array: Array, row_ids: Array, gradient: Array) -> None:
        """Update some rows of a parameter array in place; the other rows keep their values and moments.

        Parameters
        ----------
        array : (F, D) or (F,) float32
            C-contiguous; the rows `row_ids` are overwritten.
        row_ids : (n,) int32 or other integers
            Distinct rows, in [0, F).
        gradient : (n, D) or (n,) float32
            With respect to these rows.

        Raises
        ------
        TypeError, ValueError
            Wrong dtype, shape, layout or device; row_ids out of range or repeated.

        Examples
        --------
        >>> import numpy as np
        >>> from sparsemax_nb import SGD
        >>> table = np.ones((3, 2), np.float32)
        >>> SGD(learning_rate=0.5).step_rows(table, np.array([2], np.int32), np.ones((1, 2), np.float32))
        >>> table
        array([[1. , 1. ],
               [1. , 1. ],
               [0.5, 0.5]], dtype=float32)
        """
        device = check.same_device(array=array, row_ids=row_ids, gradient=gradient)
        native = check.array("array", array, np.float32, ("F", "D") if array.ndim != 1 else ("F",))
        row_ids = check.integers("row_ids", row_ids, ("n",))
        gradient = check.array("gradient", gradient, np.float32, (row_ids.shape[0], *array.shape[1:]))
        if row_ids.shape[0]:
            is_ascending = bool((row_ids[1:] > row_ids[:-1]).all())  # as `sampled_softmax` returns them: skip the sort
            ordered = row_ids if is_ascending else module_of(device).sort(row_ids)
            if int(ordered[0]) < 0 or int(ordered[-1]) >= array.shape[0] or bool((ordered[1:] == ordered[:-1]).any()):
                raise ValueError(f"row_ids must be distinct rows of array, in [0, {array.shape[0]})")
        self.check_writable(array=array)
        kind, rates, moments = self.begin_step(array)
        native, gradient, m, v = (a[:, None] if a.ndim == 1 else a for a in (native, gradient, *moments))
        backend_of(device, "optimizers").update_rows(kind, native, row_ids, gradient, Moments(m, v), rates)
        self.end_step(array)


class Adam(_Optimizer):
    """Adam with bias correction: ``p -= lr m^ / (sqrt(v^) + eps)``, m^ = m / (1 - b1^t), v^ = v / (1 - b2^t).

    In an output layer it is exact: all moments decay at every step, also where the gradient is zero. `step_rows` is the
    lazy variant for embeddings: rows that do not occur in a batch keep their values and moments, and t counts the steps
    of the whole array.

    Parameters
    ----------
    learning_rate, beta1, beta2, epsilon : float
        Step size, decay rates of the moments, and the term that keeps the division finite.

    Raises
    ------
    TypeError, ValueError
        A learning rate or epsilon that is not positive and finite; beta1 or beta2 outside [0, 1).

    Notes
    -----
    Source: D. Kingma, J. Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import Adam
    >>> w = np.array([1.0, -1.0], np.float32)
    >>> Adam(learning_rate=0.1).step(w, np.array([0.5, 0.0], np.float32))
    >>> w.round(3)
    array([ 0.9, -1. ], dtype=float32)
    """

    kind = ADAM_KIND

    def __init__(
        self, learning_rate: float = 1e-3, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8
    ) -> None:
        super().__init__(learning_rate)
        self.beta1 = check.number("beta1", beta1, 0, 1 - 2.0**-24)
        self.beta2 = check.number("beta2", beta2, 0, 1 - 2.0**-24)
        self.epsilon = check.number("epsilon", epsilon, 0, math.inf, open_ends=True)

    def _new_moments(self, array):
        device = device_of(array)
        return Moments(*(zeros(array.shape, np.float32, device) for _ in range(2)))

    def _rates(self, learning_rate, count):
        correction1, correction2 = 1 - self.beta1**count, math.sqrt(1 - self.beta2**count)
        step_size = learning_rate * correction2 / correction1
        return _as_rates(step_size, self.beta1, self.beta2, self.epsilon * correction2)


class SGD(_Optimizer):
    """Gradient descent: ``p -= lr g``, without momentum.

    Parameters
    ----------
    learning_rate : float
        Step size.

    Raises
    ------
    TypeError, ValueError
        A learning rate that is not positive and finite.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsemax_nb import SGD
    >>> w = np.array([1.0, -1.0], np.float32)
    >>> SGD(learning_rate=0.5).step(w, np.array([1.0, 0.0], np.float32))
    >>> w
    array([ 0.5, -1. ], dtype=float32)
    """

    kind = SGD_KIND

    def _new_moments(self, array):
        device = device_of(array)
        return Moments(*(zeros((0,) * array.ndim, np.float32, device) for _ in range(2)))

    def _rates(self, learning_rate, count):
        return _as_rates(learning_rate, 0.0, 0.0, 0.0)
