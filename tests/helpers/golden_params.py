"""Golden state dicts as parameters of glm_jax; that the mapping is right, the logits of the same weights show."""

import pathlib

import numpy as np

from glm_jax.interop import param_mapping
from glm_jax.interop.source import Source, config_of
from glm_jax.interop.tensors import of_array


def from_state_dict(state, num_heads):
    """The parameter tree (NumPy arrays, layers stacked) of a mapping from the original's keys to arrays.

    Gradients will do as well as weights.
    """
    tensors = {key: of_array(np.asarray(array)) for key, array in state.items()}
    config = config_of(Source("megatron", pathlib.Path("a state dict"), tensors, {}), num_heads=num_heads)
    params = {}
    for path, found in param_mapping.leaves(config).items():
        parts = [entry.to_leaf(np.asarray(state[entry.key])) for entry in found]
        branch = params
        for name in path[:-1]:
            branch = branch.setdefault(name, {})
        branch[path[-1]] = parts[0] if found[0].layer is None else np.stack(parts)
    return params
