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
    "06_a_mixture_of_sparse_experts": {
        "best": (
            "best_number_of_experts = round(32_768**0.5)",
            "best_number_of_experts = 64",
            "best_number_of_experts = 32_768",
        ),
        "gate": (
            "def slope_by_gate_value(g, s, target):\n    return softmax(g * s) @ s - s[target]",
            "def slope_by_gate_value(g, s, target):\n    return g * (softmax(g * s) @ s - s[target])",
            "def slope_by_gate_value(g, s, target):\n    return softmax(s) @ s - s[target]",
        ),
        "budget": (
            "most_classes = int((2_000 - 10 - 2 * 0.4 * 1_000) / (8 * 0.025))",
            "most_classes = int((2_000 - 2 * 0.4 * 1_000) / (8 * 0.025))",
            "most_classes = (10_000 - 2 * 1_000) // 8",
        ),
    },
    "07_back_propagation_through_time": {
        "half": (
            "def half_life(bias):\n    return np.log(0.5) / np.log(sigmoid(bias))",
            "def half_life(bias):\n    return 0.5 / sigmoid(bias)",
            "def half_life(bias):\n    return np.log(0.5) / np.log(bias)",
        ),
        "coupled": (
            "def coupled_forget_gradient(dc, before, g, f):\n    return dc * (before - g) * f * (1 - f)",
            "def coupled_forget_gradient(dc, before, g, f):\n    return dc * before * f * (1 - f)",
            "def coupled_forget_gradient(dc, before, g, f):\n    return dc * (before - g)",
        ),
        "truncated": (
            "first_place = 100",
            "first_place = 0",
            "first_place = 70",
        ),
    },
}
