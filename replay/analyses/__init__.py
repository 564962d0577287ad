"""Questions to a store: from names of runs and layers to a stored result, computing only what is missing."""
