"""Training: the objective, an update, the loop, and a whole run."""
