"""One file a verb of `python -m glm_jax`; `common` is what they share."""
