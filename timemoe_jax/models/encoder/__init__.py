"""What the families of encoders share: windows of patches that are read both ways."""
