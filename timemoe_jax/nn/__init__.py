"""The parts that models are put together from: no configuration, no input or output."""

# The names of `layers.REMAT`, for configurations, which do not import JAX.
REMAT_POLICIES = ("none", "full", "products")
