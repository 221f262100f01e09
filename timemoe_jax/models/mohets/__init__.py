"""MoHETS: an encoder of patches with Fourier experts, a convolution and a calendar."""
