"""Values and gradients of divergences in one pass over a few rows at a time."""
