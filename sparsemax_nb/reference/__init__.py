"""The definition of every operation in NumPy float64: tutorials teach from it, tests compare with it; never fast."""
