"""The parts that models are put together from: no configuration, no input or output."""
