"""The model families, each the parts of `nn` put together."""
