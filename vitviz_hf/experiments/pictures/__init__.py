"""Experiments that show features as pictures."""
