"""All grid arithmetic. Labels (or columns) lie on grid x, which may be 2^31 - 1 blocks long; everything else strides."""

#: Threads of a block where nothing else is said: four warps.
BLOCK = 128
#: Rows of the batch side by side in a block: one warp reads 32 neighbouring rows of a feature, one 128-byte line.
WARP = 32
#: Threads a launch should have before a longer loop inside a thread pays (an H200 holds 132 x 2,048).
ENOUGH_THREADS = 1 << 18
MAX_GRID_YZ = 65535
#: Blocks that a dense product should have: two for each of the 132 multiprocessors of an H200; and the terms of a sum
#: that are worth a block of their own.
ENOUGH_BLOCKS, ENOUGH_TERMS = 264, 256
#: Blocks that each hold a table of counts: eight for each of the 132 multiprocessors of an H200, or almost.
MAX_TABLES = 1024


def divide_up(n, by):
    """Smallest integer that is at least n / by."""
    return -(-n // by)


def flat(n, block=BLOCK):
    """One thread an element: (grid, block); a grid of at least one block, since a launch of none is an error."""
    return max(1, divide_up(n, block)), block


def labels_by_rows(n_labels, n_rows, block_rows=WARP, block_labels=8):
    """Grid for blocks of `block_rows` rows (x, neighbouring threads) by `block_labels` labels (y): labels on grid x."""
    return max(1, divide_up(n_labels, block_labels)), min(max(1, divide_up(n_rows, block_rows)), MAX_GRID_YZ)


def tables(n, block):
    """(grid, block) where each block fills a table in shared memory: 32 elements a thread or more."""
    return min(max(1, divide_up(n, 32 * block)), MAX_TABLES), block


def _n_lists(n_labels, n_rows, k):
    """How many lists a row's labels are shared among for top-k: enough threads for the device, lists of 8 k and more."""
    return max(1, min(divide_up(ENOUGH_THREADS, max(n_rows, 1)), n_labels // (8 * k)))


def lists_by_rows(n_labels, n_rows, k, block_rows=WARP, block_lists=4):
    """(n_lists, grid) for blocks of `block_rows` rows (x) by `block_lists` lists (y)."""
    n_lists = _n_lists(n_labels, n_rows, k)
    return n_lists, labels_by_rows(n_lists, n_rows, block_rows, block_lists)


def rows_side_by_side(n_rows, block=BLOCK):
    """Blocks of `block` threads, x: rows, at most a warp of them; y: what else there is. The power of two at or above n_rows."""
    block_rows = min(WARP, 1 << max(n_rows - 1, 0).bit_length())
    return block_rows, block // block_rows


def parts_by_rows(n_groups, n_rows, k, group_size, block_rows=WARP, block_lists=4):
    """(n_parts, grid) for blocks that search a part of the groups for `block_rows` rows, `block_lists` lists a row each."""
    n_lists = _n_lists(n_groups * group_size, n_rows, k)
    n_parts = min(divide_up(n_lists, block_lists), n_groups)
    return n_parts, labels_by_rows(n_parts, n_rows, block_rows, 1)


def lists_per_row(n_labels, n_rows, k, block=BLOCK):
    """(n_lists, grid) for blocks of `block` lists of one row; rows stride over grid y."""
    n_lists = _n_lists(n_labels, n_rows, k)
    return n_lists, (divide_up(n_lists, block), min(max(1, n_rows), MAX_GRID_YZ))


def merged_rows(n_rows, n_lists, k, lists_of_lane=8):
    """(grid, block, stream, shared bytes) for a block a row whose warps share its lists: so many a lane, or more."""
    warps = max(1, min(divide_up(n_lists, WARP * lists_of_lane), 32, 49152 // (8 * k)))
    return n_rows, (WARP, warps), 0, 8 * k * warps if warps > 1 else 0


def tiles_of_groups(n, n_groups, tile, n_columns, columns):
    """Grid for tiles of at most `tile` of `n` rows that lie in groups, each cut by itself: a bound on x; columns on y.

    The last blocks may find no tile. Columns stride where there are many.
    """
    return max(1, n // tile + n_groups), min(max(1, divide_up(n_columns, columns)), MAX_GRID_YZ)


def tiles_of_product(n_rows, n_columns, n_terms, tile_rows, tile_columns):
    """(n_parts, grid) for tiles of a matrix on x; where these are few, the sums are cut into parts, on y."""
    n_tiles = max(1, divide_up(n_rows, tile_rows) * divide_up(n_columns, tile_columns))
    n_parts = max(1, min(ENOUGH_BLOCKS // n_tiles, n_terms // ENOUGH_TERMS, MAX_GRID_YZ))
    return n_parts, (n_tiles, n_parts)


def block_that_fits(bytes_of, block):
    """(threads, shared bytes) of a block that needs ``bytes_of(threads)``: `block` threads, or half of them again and again."""
    while bytes_of(block) > 49152 and block > WARP:
        block //= 2
    return block, shared_bytes(bytes_of(block))


def labels_by_warps(n_labels, bytes_of_warp, block=BLOCK):
    """(grid, block, shared bytes) where each warp owns a label and some shared memory: fewer warps where it does not fit."""
    threads, shared = block_that_fits(lambda threads: threads // WARP * bytes_of_warp, max(block, WARP))
    return max(1, divide_up(n_labels, threads // WARP)), (WARP, threads // WARP), shared


def shared_bytes(n_bytes):
    """Dynamic shared memory of a launch; ValueError above the 48 KiB that every device grants without asking."""
    if n_bytes > 49152:
        raise ValueError(f"the kernel needs {n_bytes} bytes of shared memory, 49152 can be had; use a smaller fan-in")
    return n_bytes
