"""From prompts with blanks to text."""

from glm_jax.decoding.answer import Decoder
from glm_jax.decoding.fill import Filled, fill, generate, stream
from glm_jax.decoding.prompts import PromptError
from glm_jax.decoding.strategy import DecodingError, Strategy

__all__ = ["Decoder", "DecodingError", "Filled", "PromptError", "Strategy", "fill", "generate", "stream"]
