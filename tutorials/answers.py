"""Right and wrong answers to the exercises: the tests insert them and run the checks.

Solve the exercises before you look. ``ANSWERS[tutorial][exercise]`` is (right, wrong, wrong, ...): source code that
replaces the cell of the exercise.
"""

ANSWERS = {
    "01_where_the_time_and_memory_go": {
        "fits": (
            "classes_that_fit = int(16e9 // (4 * (4 * 512 + 128)))",
            "classes_that_fit = int(16e9 // (4 * (3 * 512 + 128)))",
            "classes_that_fit = int(16e9 // (4 * 512))",
        ),
        "traffic": (
            "bytes_of_connection = 4 + 4 + 4",
            "bytes_of_connection = 4 + 4",
            "bytes_of_connection = 4 * 7",
        ),
        "chunks": (
            "def loss_by_chunks(h, w, targets, chunk):\n"
            "    largest, total = np.full(len(h), -np.inf, np.float32), np.zeros(len(h), np.float32)\n"
            "    for start in range(0, len(w), chunk):\n"
            "        scores = h @ w[start : start + chunk].T\n"
            "        new = np.maximum(largest, scores.max(1))\n"
            "        total = total * np.exp(largest - new) + np.exp(scores - new[:, None]).sum(1)\n"
            "        largest = new\n"
            "    return np.mean(np.log(total) + largest - (h * w[targets]).sum(1))",
            "def loss_by_chunks(h, w, targets, chunk):\n"
            "    largest, total = np.full(len(h), -np.inf, np.float32), np.zeros(len(h), np.float32)\n"
            "    for start in range(0, len(w), chunk):\n"
            "        scores = h @ w[start : start + chunk].T\n"
            "        largest = np.maximum(largest, scores.max(1))\n"
            "        total += np.exp(scores - largest[:, None]).sum(1)\n"
            "    return np.mean(np.log(total) + largest - (h * w[targets]).sum(1))",
            "def loss_by_chunks(h, w, targets, chunk):\n    return loss_and_gradient(h @ w.T, targets)",
        ),
    },
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
            "def relu_backward(dh, z):\n    return dh * (z > 0)",
            "def relu_backward(dh, z):\n    return np.maximum(dh, 0)",
        ),
    },
    "03_your_first_kernel": {
        "stride": ("sectors_of_stride_2 = 8", "sectors_of_stride_2 = 4", "sectors_of_stride_2 = 16"),
        "dbias": (
            "def dbias_thread(dscores, dbias, t):\n"
            "    total = np.float32(0)\n"
            "    for row in range(dscores.shape[0]):\n"
            "        total += dscores[row, t]\n"
            "    dbias[t] = total",
            "def dbias_thread(dscores, dbias, t):\n"
            "    if t < dscores.shape[0]:\n"
            "        for label in range(dscores.shape[1]):\n"
            "            dbias[label] += dscores[t, label]",
            "def dbias_thread(dscores, dbias, t):\n"
            "    for row in range(dscores.shape[1]):\n"
            "        dbias[t] = dscores[row % dscores.shape[0], t]",
        ),
        "banks": ("threads_in_fullest_bank = 2", "threads_in_fullest_bank = 1", "threads_in_fullest_bank = 32"),
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
            "first_position = 100",
            "first_position = 0",
            "first_position = 70",
        ),
    },
    "08_profile_it": {
        "ridge": ("rows_at_ridge = 17", "rows_at_ridge = 16", "rows_at_ridge = 32"),
        "float32": (
            "def half_square(s):\n    return np.float32(0.5) * s * s",
            "def half_square(s):\n    return 0.5 * s * s",
            "def half_square(s):\n    return s * s / 2",
        ),
        "ratio": (
            "def ratio(a, b):\n    return np.median(b / a)",
            "def ratio(a, b):\n    return b.mean() / a.mean()",
            "def ratio(a, b):\n    return np.mean(b / a)",
            "def ratio(a, b):\n    return b.min() / a.min()",
        ),
    },
}
