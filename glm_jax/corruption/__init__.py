"""GLM's objectives: raw rows in, model-ready batches out, on device and inside the compiled step."""
