"""Optimisers: they hold the state that follows the arrays; the formulas sit in ``core/formulas.py``."""

import math

import numpy as np

from .core import check
from .core.device import backend_of, device_of, module_of, zeros
from .core.formulas import ADAM_KIND, SGD_KIND, Moments, Rates


class _State:
    """An array's moments, the number of steps it has taken, the factor of its learning rate.

    It holds the array, so that its identity stays unique.
    """

    def __init__(self, array, moments):
        self.array, self.moments, self.count, self.factor = array, moments, 0, 1.0


def _as_rates(*rates):
    """`Rates` as float32; ValueError where the learning rate is too large to be one."""
    if rates[0] > check.LARGEST:
        raise ValueError(f"learning_rate must be a float32 with its factor and corrections, got {rates[0]:g}; lower it")
    return Rates(*map(np.float32, rates))


class _Optimizer:
    """State by array: each array counts its own steps, so layers may be updated in any order."""

    kind: int | None = None

    def __init__(self, learning_rate):
        self.learning_rate = check.number("learning_rate", learning_rate, 0, math.inf, open_ends=True)
        self._states = {}

    def __getstate__(self):
        """Attributes, with the states alone: the addresses that they are found by do not outlive a copy or a pickle."""
        return self.__dict__ | {"_states": list(self._states.values())}

    def __setstate__(self, attributes):
        self.__dict__.update(attributes)
        self._states = {id(state.array): state for state in self._states}

    def state_of(self, array):
        """The state of a parameter array, made of zeros when it is first asked for.

        It follows the array object: update the same object every time, not a new view of it.

        Parameters
        ----------
        array : (...) float32
            A parameter, on either device. It is held, so that its identity stays unique.

        Returns
        -------
        state : object
            ``moments``, m and v shaped like the array (empty for SGD); ``count``, the steps so far; ``factor``, of the
            learning rate.

        Raises
        ------
        TypeError
            array is no array.

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

    def replace(self, old, new, take):
        """`new` takes the place of the parameter array `old`, with its steps and with moments made from its moments.

        Parameters
        ----------
        old : (...) float32
            A parameter. Nothing happens where it has no state yet.
        new : (...) float32
            What is updated from now on.
        take : callable
            ``take(moment)`` is the new moment, shaped like `new`: what was done to `old` to make `new`.

        Raises
        ------
        TypeError
            No arrays on one device, or `take` is no function.

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

    def check_writable(self, **arrays):
        """ValueError where a parameter array, by its name, or its moments are read-only: a step writes to both.

        Parameters
        ----------
        **arrays : (...) float32
            Parameters. No state is made for those that have none yet.

        Raises
        ------
        ValueError
            Names the array.

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

    def begin_step(self, array):
        """What kernels need for the next step of `array`.

        Parameters
        ----------
        array : (...) float32
            The parameter that is to be updated.

        Returns
        -------
        kind : int
            Which formula of ``core/formulas.py``.
        rates : tuple of float32
            Learning rate and constants, with the corrections of the step that comes.
        moments : tuple of (...) float32
            m and v; the kernel updates them in place.

        Raises
        ------
        TypeError, ValueError
            array is no array; a learning rate that overflows float32 with its factor and corrections.

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

    def scale_rate(self, array, factor):
        """From now on, `array` learns at `factor` times the learning rate.

        Parameters
        ----------
        array : (...) float32
            A parameter.
        factor : float
            Not negative.

        Raises
        ------
        TypeError, ValueError
            factor is no number, negative or not finite.

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

    def end_step(self, *arrays):
        """Count a step of each of the arrays, once the kernel has been launched that `begin_step` was called for.

        Parameters
        ----------
        *arrays : (...) float32
            Parameters.

        Raises
        ------
        TypeError
            One of them is no array; none has been counted.

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

    def step(self, array, gradient):
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
        array_ = check.array("array", array, np.float32, array.shape, writeable=True)
        gradient = check.array("gradient", gradient, np.float32, array.shape)
        self.check_writable(array=array)
        kind, rates, moments = self.begin_step(array)
        flat = Moments(moments.m.reshape(-1), moments.v.reshape(-1))
        backend_of(device, "optimizers").update(kind, array_.reshape(-1), gradient.reshape(-1), flat, rates)
        self.end_step(array)

    def step_rows(self, array, row_ids, gradient):
        """Update some rows of a parameter array in place; the other rows keep value and moments.

        Parameters
        ----------
        array : (F, D) float32
            C-contiguous; the rows `row_ids` are overwritten.
        row_ids : (n,) int32 or other integers
            Different rows, in [0, F).
        gradient : (n, D) float32
            By these rows.

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
        array_ = check.array("array", array, np.float32, ("F", "D"), writeable=True)
        row_ids = check.integers("row_ids", row_ids, ("n",))
        gradient = check.array("gradient", gradient, np.float32, (row_ids.shape[0], array.shape[1]))
        if row_ids.shape[0]:
            is_ascending = bool((row_ids[1:] > row_ids[:-1]).all())  # as `sampled_softmax` gives them
            ordered = row_ids if is_ascending else module_of(device).sort(row_ids)
            if int(ordered[0]) < 0 or int(ordered[-1]) >= array.shape[0] or bool((ordered[1:] == ordered[:-1]).any()):
                raise ValueError(f"row_ids must be different rows of array, in [0, {array.shape[0]})")
        self.check_writable(array=array)
        kind, rates, moments = self.begin_step(array)
        backend_of(device, "optimizers").update_rows(kind, array_, row_ids, gradient, moments, rates)
        self.end_step(array)


class Adam(_Optimizer):
    """Adam with bias correction: ``p -= lr m^ / (sqrt(v^) + eps)``, m^ = m / (1 - b1^t), v^ = v / (1 - b2^t).

    Exact in an output layer: every moment decays at every step, also where the gradient is zero. `step_rows` is the
    lazy variant for embeddings: rows that a batch does not touch keep value and moments, t counts the array's steps.

    Parameters
    ----------
    learning_rate, beta1, beta2, epsilon : float
        Step size, decay rates of the moments and the term that keeps the division finite.

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

    def __init__(self, learning_rate=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-8):
        super().__init__(learning_rate)
        self.beta1 = check.number("beta1", beta1, 0, 1 - 2.0**-24)
        self.beta2 = check.number("beta2", beta2, 0, 1 - 2.0**-24)
        self.epsilon = check.number("epsilon", epsilon, 0, math.inf, open_ends=True)

    def _new_moments(self, array):
        device = device_of(array)
        return Moments(*(zeros(array.shape, np.float32, device) for _ in range(2)))

    def _rates(self, learning_rate, count):
        correction1, correction2 = 1 - self.beta1**count, math.sqrt(1 - self.beta2**count)
        rates = learning_rate * correction2 / correction1, self.beta1, self.beta2, self.epsilon * correction2
        return _as_rates(*rates)


class SGD(_Optimizer):
    """Gradient descent: ``p -= lr g``; keeps no state.

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

    def _rates(self, learning_rate, _):
        return _as_rates(learning_rate, 0.0, 0.0, 0.0)
