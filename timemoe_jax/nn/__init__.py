"""The parts that models are put together from: no configuration, no input or output."""

# For configurations, which do not import JAX: the names of `layers.REMAT`.
REMAT_POLICIES = ("none", "full", "products")
# Points by which `copies` judges the lag of the recent past.
COPY_RECENT = 32
