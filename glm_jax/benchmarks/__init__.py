"""Measurements, each a function that returns a dict for one JSON line. `python -m glm_jax benchmark` runs them."""
