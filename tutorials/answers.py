"""Answers to the exercises, right ones and wrong ones: the tests put them in and look at what the checks say.

Try first! ``ANSWERS[tutorial][exercise]`` is (right, wrong, wrong, ...), source that takes the place of the exercise's cell.
"""

ANSWERS = {
    "02_a_gradient_by_hand": {
        "bytes": (
            "bytes_of_dscores = 128 * 1_000_000 * 4",
            "bytes_of_dscores = 128 * 1_000_000",
        ),
        "bce": (
            "def bce_gradient(scores, y):\n    return -y / (1 + np.exp(y * scores))",
            "def bce_gradient(scores, y):\n    return -1 / (1 + np.exp(y * scores))",
            "def bce_gradient(scores, y):\n    return -y / (1 + np.exp(-y * scores))",
        ),
        "relu": (
            "def relu_backward(dx, z):\n    return dx * (z > 0)",
            "def relu_backward(dx, z):\n    return np.maximum(dx, 0)",
        ),
    },
}
