"""What a run needs on a TPU slice, found by compiling its step for it without the hardware."""
