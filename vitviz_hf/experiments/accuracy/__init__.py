"""Experiments that count right answers."""
