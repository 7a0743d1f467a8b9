"""Adversarial robustness in JAX: attacks, training methods, evaluation."""
