"""`metarun tune`: training runs drawn, compared and stopped early by Optuna; the best one on validation becomes a recipe."""
