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
    "04_sparse_and_still_accurate": {
        "miss": (
            "def probability_of_none(H, K, r):\n    return math.comb(H - r, K) / math.comb(H, K)",
            "def probability_of_none(H, K, r):\n    return (1 - r / H) ** K",
            "def probability_of_none(H, K, r):\n    return 1 - math.comb(H - r, K) / math.comb(H, K)",
        ),
        "break-even": (
            "break_even = 768 * 32768 // (768 - 2 * 32) + 1",
            "break_even = 768 * 32768 // (768 - 32) + 1",
            "break_even = 32768",
        ),
        "choose": (
            "def most_promising(x, dscores, connected):\n"
            "    gradients = np.abs(dscores @ x)\n    gradients[connected] = -1\n    return gradients.argmax()",
            "def most_promising(x, dscores, connected):\n    return np.abs(dscores @ x).argmax()",
            "def most_promising(x, dscores, connected):\n"
            "    gradients = dscores @ x\n    gradients[connected] = -np.inf\n    return gradients.argmax()",
        ),
    },
    "05_sampling_a_softmax": {
        "shift": (
            "shift = np.log(33_278 / 20)",
            "shift = np.log(20 / 33_278)",
            "shift = 33_278 / 20",
        ),
        "first": (
            "def first_probabilities(r0, r1, W):\n    p = np.exp(r0) * (W @ np.exp(r1))\n    return p / p.sum()",
            "def first_probabilities(r0, r1, W):\n    p = np.exp(r0) * W.sum(axis=1)\n    return p / p.sum()",
            "def first_probabilities(r0, r1, W):\n    return np.exp(r0) * (W @ np.exp(r1))",
        ),
        "constant": (
            "def loss_of_exact(M):\n    return np.log(M + 1)",
            "def loss_of_exact(M):\n    return np.log(M)",
            "def loss_of_exact(M):\n    return 0",
        ),
    },
}
