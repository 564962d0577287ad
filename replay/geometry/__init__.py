"""Operators, distances and trajectories as pure functions of arrays; nothing here knows of a store."""
