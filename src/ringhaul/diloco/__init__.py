"""Training with rare communication: outer optimizers and loops over the public API."""
