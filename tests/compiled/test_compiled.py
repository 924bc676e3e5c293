"""Tier 3: the compiled kernels executed on the CPU by ptxsim, launched as the CUDA backend launches them."""

from unittest import mock

import numpy as np
import pytest

import ptxsim
from sparsemax_nb.cuda import launch as launches
from sparsemax_nb.reference import rewiring
from tests import ptx
from tests.catalogue import OPERATIONS, intercepted
from tests.core import philox

CC = 9, 0


def _cases():
    """Every operation and shape.

    With the grid limited to one row of blocks, the shape with the most rows is enough.
    """
    for o in OPERATIONS:
        most = max(range(len(o.shapes)), key=lambda i: np.ravel(o.shapes[i])[0])
        for i, shape in enumerate(o.shapes):
            yield pytest.param(o, shape, launches.MAX_GRID_YZ, id=f"{o.name}-{shape}")
            if i == most:
                yield pytest.param(o, shape, 1, id=f"{o.name}-{shape}-rows stride")


NAMED = {operation.name: operation for operation in OPERATIONS}


def execute(operation, shape):
    """Runs the operation and checks its results; returns {name of kernel: ptxsim's result}."""
    results, task = {}, operation.make(shape)

    def run(item):
        grid, block = (np.array((np.ravel(v).tolist() + [1, 1])[:3]) for v in (item.grid, item.block))
        assert (grid >= 1).all(), "CUDA refuses an empty grid"
        assert (grid <= (2**31 - 1, 65535, 65535)).all()
        assert 1 <= block.prod() <= 1024
        assert item.shared <= 48 << 10
        text = ptx.ptx_of(item.kernel, item.args, CC)
        result = ptxsim.run_ptx(text, item.grid, item.block, item.args, cc=CC, dynamic_shared=item.shared)
        if result.errors + result.warnings:  # once more, compiled with the numbers of the lines
            result = ptxsim.launch(item.kernel, item.grid, item.block, item.args, dynamic_shared=item.shared)
            pytest.fail("\n".join(map(str, result.errors + result.warnings)), pytrace=False)
        results[item.kernel.py_func.__name__] = result

    with intercepted(run):
        operation.function(*task.args)
    task.check()
    return results


@pytest.fixture(scope="module", autouse=True)
def _no_assembler():
    """Registers are a matter of tier 2: no process of ptxas for each kernel."""
    with mock.patch.object(ptxsim, "ptxas_resources", return_value=None):
        yield


@pytest.mark.parametrize(("operation", "shape", "most_blocks"), list(_cases()))
def test_right_and_without_errors(operation, shape, most_blocks, monkeypatch):
    """Results equal `reference`; no access out of bounds, no race, no broken barrier.

    Also with a grid that is too small, so that blocks stride.
    """
    monkeypatch.setattr(launches, "MAX_GRID_YZ", most_blocks)
    execute(operation, shape)


#: The memory traffic that docstrings promise: operation, shape (full tiles, full warps), kernel, sectors per store. One
#: coalesced float32 load of a warp touches 4 sectors; no load of these kernels touches more, except of lists of labels.
TRAFFIC = [
    ("fixed_fan_in.forward (simple)", (64, 40, 64, 4), "forward_kernel", 32),
    ("fixed_fan_in.forward (narrow)", (64, 40, 64, 4), "forward_tiled_kernel", 4),
    ("losses.multilabel bce", (9, 128), "multilabel_kernel", 4),
    ("activations.relu_dropout 0.3", (9, 128), "relu_dropout_kernel", 4),
    ("activations.relu_dropout_backward", (9, 128), "relu_dropout_backward_kernel", 4),
    ("lstm.forward", (2, 9, 128), "cell_kernel", 4),
    ("lstm.backward", (2, 9, 128), "cell_backward_kernel", 4),
    ("embedding.forward", (9, 33, 128), "forward_kernel", 4),
    ("embedding.backward", (33, 9, 128), "backward_kernel", 4),
    ("rewiring.count_smallest", (64, 31), "count_smallest_kernel", 4),
    ("optimizers.update adam", 256, "update_kernel", 4),
    ("optimizers.update_rows adam", (5, 9, 128), "update_rows_kernel", 4),
]


@pytest.mark.parametrize(("name", "shape", "kernel", "sectors"), TRAFFIC)
def test_traffic_is_as_promised(name, shape, kernel, sectors):
    result = execute(NAMED[name], shape)[kernel]
    assert result.counters.global_store.sectors_per_request == sectors
    loads = [a.sectors / a.requests for a in result.accesses if (a.kind, a.space) == ("ld", "global") and a.requests]
    assert 4 in loads
    assert max(loads) == 4 or kernel == "multilabel_kernel"
    assert result.counters.shared_load.extra_wavefronts == result.counters.shared_store.extra_wavefronts == 0


def test_tile_is_used():
    """Shared memory is used at all: the test above that there are no bank conflicts is not vacuous."""
    counters = execute(NAMED["fixed_fan_in.forward (narrow)"], (64, 40, 64, 4))["forward_tiled_kernel"].counters
    assert counters.shared_load.requests == counters.shared_store.requests == 64 * 64 / 32


@pytest.mark.parametrize(("dtype", "products"), [("bfloat16", 3), ("float32", 6)])
def test_tensor_cores_do_what_their_kernels_say(dtype, products):
    """Six products for two float32 factors, three where one is bfloat16; whole sectors stored."""
    n_rows, n_inputs, n_labels, fan_in, group_size = shape = (64, 70, 32, 32, 16)
    product = 2 * n_rows * n_labels * fan_in
    forward = execute(NAMED[f"group_shared.forward tensor cores {dtype}"], shape)["forward_kernel"].counters
    assert forward.flops["mma"] == products * product
    assert forward.global_store.sectors_per_request == 4
    assert forward.shared_load.requests == 0
    step = execute(NAMED[f"group_shared.step tensor cores bce adam {dtype}"], shape)["step_kernel"].counters
    assert step.flops["mma"] == (products + 6 + products) * product
    (atomics,) = step.atomics.values()
    assert atomics["lanes"] == n_rows * fan_in * n_labels // group_size, "one for each input and row of a group"


def test_weights_of_cells_are_read_in_whole_lines():
    """With as many codewords as threads and one draw per row, each load of a warp is one line or one number."""
    result = execute(NAMED["midx.log_prob uniform"], (2, 1, 128, 400))["log_prob_kernel"]
    loads = [a.sectors / a.requests for a in result.accesses if (a.kind, a.space) == ("ld", "global") and a.requests]
    assert max(loads) == 4


def test_one_row_fills_its_warps():
    """For a single row, the labels are spread over the lanes of a warp, and so are its lists when they are merged."""
    for result in execute(NAMED["fixed_fan_in.top_k"], (1, 9, 8192, 2, 1)).values():
        assert result.counters.thread_instructions > 25 * result.counters.warp_instructions


def test_labels_without_gradient_cost_no_atomics():
    """Half of the gradients of scores are zero in the backward pass; each of the others costs K atomics."""
    shape = (33, 19, 17, 3)
    for operation in NAMED["fixed_fan_in.backward"], NAMED["fixed_fan_in.backward (narrow)"]:
        dscores = operation.make(shape).args[2]
        (result,) = execute(operation, shape).values()
        (atomics,) = result.counters.atomics.values()
        assert atomics["lanes"] == 3 * np.count_nonzero(dscores) < 3 * dscores.size


def test_wide_kernels_take_few_and_many_gradients():
    """Up to 16 of 128 rows are handled one by one, 32 connections at once: one request per row.

    With more rows, 32 rows are handled at once.
    """
    shape, requests = (128, 70, 1, 32), {}
    for n_active in (1, 16, 17):
        task = NAMED["fixed_fan_in.backward"].make(shape)
        task.args[2][:] = np.arange(128)[:, None] % 8 == 0
        task.args[2][n_active * 8 :] = 0
        if n_active == 17:
            task.args[2][1] = 1
        operation = NAMED["fixed_fan_in.backward"]._replace(make=lambda shape, task=task: task)
        counters = execute(operation, shape)["backward_wide_kernel"].counters
        requests[n_active] = sum(atomics["requests"] for atomics in counters.atomics.values())
    assert requests == {1: 1, 16: 16, 17: 4 * 32}


def test_wide_loads_touch_each_sector_once():
    """Per connection: 512 bytes for 128 rows in one load (16 sectors), and one sector each for weight and index."""
    counters = execute(NAMED["fixed_fan_in.forward"], (128, 40, 64, 4))["forward_wide_kernel"].counters
    assert counters.global_load.sectors == 64 * (1 + 4 * (16 + 1 + 1))
    assert counters.global_store.sectors_per_request == 4
    assert counters.shared_load.extra_wavefronts == counters.shared_store.extra_wavefronts == 0


def test_traffic_of_the_histogram():
    """Weights are read once, coalesced.

    One atomic in shared memory per counted weight, at most one in global memory per block and bin.
    """
    operation, n = NAMED["rewiring.magnitude_histogram 10"], 1 << 15
    counters = execute(operation, n)["magnitude_histogram_kernel"].counters
    assert counters.global_load.bytes == counters.global_load.unique_bytes == 4 * n
    assert counters.global_load.sectors_per_request == 4
    bits, prefix, shift, _ = operation.make(n).args
    matches = rewiring.magnitude_histogram(bits, prefix, shift, 1024)
    assert counters.atomics["atom.add.u32"]["lanes"] == matches.sum() < n
    assert counters.blocks_total > 1
    assert counters.atomics["atom.add.u64"]["lanes"] <= counters.blocks_total * np.count_nonzero(matches)


def test_labels_that_lose_nothing_cost_two_offsets():
    """Only labels with something to redraw have their indices and values read, each by its own thread."""
    operation, shape = NAMED["rewiring.redraw adam"], (300, 1000, 8, 0.1)
    losers = np.count_nonzero(np.diff(operation.make(shape).args[4]))
    counters = execute(operation, shape)["redraw_kernel"].counters
    assert losers < 200
    assert counters.global_load.unique_bytes <= 8 * 301 + losers * 8 * (4 + 4) + counters.global_store.unique_bytes
    assert not counters.atomics
    assert counters.local_load_bytes == counters.local_store_bytes == 0


def test_philox_equals_the_published_vectors():
    words = np.zeros((len(philox.VECTORS), 4), np.uint64)
    result = ptxsim.launch(philox.kernel, 1, 32, (philox.COUNTERS, philox.KEYS, words))
    assert not result.errors
    np.testing.assert_array_equal(words, philox.WORDS)
