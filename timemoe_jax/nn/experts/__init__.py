"""Routed experts: the router, the dispatch, the products, and the layer of them all."""
