"""Studies: variants of a config, trained one after the other, and what came of them."""
