"""Distillation of language models: a student of fewer layers learns what its teacher predicts."""
