"""Figures of stored results, drawn with matplotlib's object interface so that no global state is touched."""
