"""KL-penalised PPO (``python -m rlhf.ppo``), and by TRL reward models, SFT, DPO and RLOO."""
