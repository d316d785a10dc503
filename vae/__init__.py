"""A beta-VAE on MNIST and its relatives: IWAE, beta-TC-VAE, capacity, and the deep VIB."""
