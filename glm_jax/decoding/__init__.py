"""From prompts with blanks to text."""

from glm_jax.decoding.fill import Filled, PromptError, fill

__all__ = ["Filled", "PromptError", "fill"]
