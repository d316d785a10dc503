"""Reward models, KL-penalised PPO, RLOO and DPO: python -m rlhf.train."""
