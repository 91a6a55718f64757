"""Formulas of data-free inversion, the replay buffer, and the sources that fill it."""
