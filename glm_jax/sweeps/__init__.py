"""Sweeps: which of several candidates is best, each with hyperparameters chosen for it."""
