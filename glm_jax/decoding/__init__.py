"""From prompts with blanks to text."""

from glm_jax.decoding.api import Filled, fill, generate, stream
from glm_jax.decoding.decoder import Decoder
from glm_jax.decoding.options import DecodingError, SamplingParams
from glm_jax.decoding.prompts import PromptError

__all__ = ["Decoder", "DecodingError", "Filled", "PromptError", "SamplingParams", "fill", "generate", "stream"]
