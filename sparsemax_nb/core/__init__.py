"""What all wings share: where arrays live, argument checks, scalar formulas, random numbers."""
