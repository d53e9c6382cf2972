"""Config-driven meta-learning experiments."""
