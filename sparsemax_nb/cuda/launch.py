"""Launch configurations: grids, blocks and dynamic shared memory.

Labels (or columns) are on grid x, which may be 2^31 - 1 blocks long. Everything else strides over grid y.
"""

#: Default number of threads per block: four warps.
BLOCK = 128
#: Lanes of a warp. A warp reads 32 neighbouring rows of one input: a single 128-byte line.
WARP = 32
#: Threads that fill the device (an H200 holds 132 x 2,048). Beyond them, longer loops cost less than more threads.
ENOUGH_THREADS = 1 << 18
#: Blocks on grid y or z: CUDA's limit.
MAX_GRID_YZ = 65535
#: Bytes of shared memory per block that every device grants without opting in.
MAX_SHARED_BYTES = 48 << 10
#: Blocks that fill the device in a dense product: two per multiprocessor of an H200 (132).
ENOUGH_BLOCKS = 264
#: Terms of a sum that are worth a block of their own where a product is split into partial sums.
ENOUGH_TERMS = 256
#: Blocks with a table of counts in shared memory: about eight per multiprocessor of an H200. More blocks would only add
#: tables to merge.
MAX_TABLES = 1024


def divide_up(n, by):
    """``ceil(n / by)`` in integers."""
    return -(-n // by)


def flat(n, block=BLOCK):
    """(grid, block) for one thread per element.

    The grid has at least one block: CUDA refuses an empty one.
    """
    return max(1, divide_up(n, block)), block


def labels_by_rows(n_labels, n_rows, block_rows=WARP, block_labels=8):
    """Grid for blocks of `block_rows` rows (x, neighbouring threads) by `block_labels` labels (y).

    Labels are on grid x.
    """
    return max(1, divide_up(n_labels, block_labels)), min(max(1, divide_up(n_rows, block_rows)), MAX_GRID_YZ)


def tables(n, block):
    """(grid, block) where each block fills a table in shared memory from at least 32 elements per thread."""
    return min(max(1, divide_up(n, 32 * block)), MAX_TABLES), block


def _n_lists(n_labels, n_rows, k):
    """Number of lists that share the labels of one row for top-k.

    Enough to fill the device, but each with at least 8 k labels, so that merging stays the smaller part.
    """
    return max(1, min(divide_up(ENOUGH_THREADS, max(n_rows, 1)), n_labels // (8 * k)))


def lists_by_rows(n_labels, n_rows, k, block_rows=WARP, block_lists=4):
    """(n_lists, grid) for blocks of `block_rows` rows (x) by `block_lists` lists (y)."""
    n_lists = _n_lists(n_labels, n_rows, k)
    return n_lists, labels_by_rows(n_lists, n_rows, block_rows, block_lists)


def block_of_rows(n_rows, block=BLOCK):
    """(x, y) of a block of `block` threads: x rows, y labels or lists.

    x is the power of two at or above n_rows, at most a warp: with few rows, no lane idles.
    """
    block_rows = min(WARP, 1 << max(n_rows - 1, 0).bit_length())
    return block_rows, block // block_rows


def parts_by_rows(n_groups, n_rows, k, group_size, block_rows=WARP, block_lists=4):
    """(n_parts, grid) for blocks that search one part of the groups for `block_rows` rows.

    Each block keeps `block_lists` lists per row.
    """
    n_lists = _n_lists(n_groups * group_size, n_rows, k)
    n_parts = min(divide_up(n_lists, block_lists), n_groups)
    return n_parts, labels_by_rows(n_parts, n_rows, block_rows, 1)


def lists_per_row(n_labels, n_rows, k, block=BLOCK):
    """(n_lists, grid) for blocks of `block` lists of one row; rows stride over grid y."""
    n_lists = _n_lists(n_labels, n_rows, k)
    return n_lists, (divide_up(n_lists, block), min(max(1, n_rows), MAX_GRID_YZ))


def merged_rows(n_rows, n_lists, k, lists_per_lane=8):
    """(grid, block, stream, shared bytes) for one block per row whose warps share the row's lists.

    A lane takes `lists_per_lane` lists, or more where the block has reached its limit of 32 warps or of shared memory.
    """
    warps = max(1, min(divide_up(n_lists, WARP * lists_per_lane), 32, MAX_SHARED_BYTES // (8 * k)))
    return n_rows, (WARP, warps), 0, 8 * k * warps if warps > 1 else 0


def tiles_of_groups(n, n_groups, tile, n_columns, columns):
    """Grid for tiles of at most `tile` rows, cut separately in each of `n_groups` groups of `n` rows together.

    x is an upper bound: the last blocks may find no tile. Columns are on y and stride where there are many.
    """
    return max(1, n // tile + n_groups), min(max(1, divide_up(n_columns, columns)), MAX_GRID_YZ)


def tiles_of_product(n_rows, n_columns, n_terms, tile_rows, tile_columns):
    """(n_parts, grid) for tiles of a matrix on x.

    Few tiles would leave multiprocessors idle: the sums are then split into n_parts partial sums, on y.
    """
    n_tiles = max(1, divide_up(n_rows, tile_rows) * divide_up(n_columns, tile_columns))
    n_parts = max(1, min(ENOUGH_BLOCKS // n_tiles, n_terms // ENOUGH_TERMS, MAX_GRID_YZ))
    return n_parts, (n_tiles, n_parts)


def block_that_fits(bytes_of, block):
    """(threads, shared bytes) of a block that needs ``bytes_of(threads)`` bytes of shared memory.

    Starts with `block` threads and halves them until the block fits, down to one warp.
    """
    while bytes_of(block) > MAX_SHARED_BYTES and block > WARP:
        block //= 2
    return block, shared_bytes(bytes_of(block))


def labels_by_warps(n_labels, bytes_of_warp, block=BLOCK):
    """(grid, block, shared bytes) where each warp owns one label and `bytes_of_warp` of shared memory.

    A block has fewer warps where they would not fit.
    """
    threads, shared = block_that_fits(lambda threads: threads // WARP * bytes_of_warp, max(block, WARP))
    return max(1, divide_up(n_labels, threads // WARP)), (WARP, threads // WARP), shared


def shared_bytes(n_bytes):
    """Dynamic shared memory of a launch, in bytes.

    Raises ValueError above the 48 KiB that every device grants without opting in.
    """
    if n_bytes > MAX_SHARED_BYTES:
        raise ValueError(
            f"the kernel needs {n_bytes} bytes of shared memory per block, the limit is {MAX_SHARED_BYTES}; "
            "use a smaller fan_in, group_size, n_codewords or width of h"
        )
    return n_bytes
