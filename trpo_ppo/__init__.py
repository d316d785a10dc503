"""TRPO and PPO on Gymnasium, with every form of the KL constraint."""
