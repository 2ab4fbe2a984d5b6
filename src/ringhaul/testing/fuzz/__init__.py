"""Hostile bytes for every parser: valid input, mutants of it, and what must never come out."""
