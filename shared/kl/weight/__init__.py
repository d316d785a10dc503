"""Weights of a KL in a loss: schedules and controllers."""
