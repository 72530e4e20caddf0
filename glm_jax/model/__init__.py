"""The network: config, layers, attention and its kernels, losses, heads."""
