"""Deterministic simulation: the real operator against a model of its surroundings. docs/simulation.md tells how to read it."""
