"""Causal language models, and TRL's trainers in the run folder."""
