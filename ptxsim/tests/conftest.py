"""These tests run compiled code: they are left out in Numba's simulator, which compiles nothing."""

import numba

collect_ignore_glob = ["test_*.py"] if numba.config.ENABLE_CUDASIM else []
