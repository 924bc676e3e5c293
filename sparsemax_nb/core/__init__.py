"""What all backends share: devices, argument checks, scalar formulas and random numbers."""
