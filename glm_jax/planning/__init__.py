"""What a run needs on a TPU topology, computed by compiling its step without the hardware."""
