"""Studies: tables of runs, where they stand, what they claim. Imports no torch."""
