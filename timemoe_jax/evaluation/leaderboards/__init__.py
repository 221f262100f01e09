"""GIFT-Eval, fev-bench and chaotic systems: scaled and probabilistic errors beside the leaders'."""
