"""Categorical distributions, from probabilities and from logits."""
