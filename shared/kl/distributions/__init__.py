"""``kl_divergence`` of torch.distributions, right at the edges."""
