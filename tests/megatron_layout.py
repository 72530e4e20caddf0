"""The original's state dict as the parameter tree of glm_jax, for tests that read golden checkpoints."""

import numpy as np


def from_state_dict(state, num_heads):
    """Parameter tree (nested dict of float32 arrays, layers stacked on axis 0) from the original's keys.

    Linear weights there are [out in]; the fused query-key-value rows are [Q; K; V], heads contiguous in each third.
    Accepts any mapping from keys to arrays, gradients as well as weights.
    """
    width = state["transformer.final_layernorm.weight"].shape[0]
    num_layers = len({key.split(".")[2] for key in state if key.startswith("transformer.layers.")})
    head_width = width // num_heads

    def stack(name, convert=lambda array: array):
        return np.stack([convert(np.asarray(state[f"transformer.layers.{i}.{name}"])) for i in range(num_layers)])

    def norm(name):
        return {"scale": stack(f"{name}.weight"), "bias": stack(f"{name}.bias")}

    params = {
        "word_embeddings": {"embedding": np.asarray(state["word_embeddings.weight"])},
        "final_layernorm": {
            "scale": np.asarray(state["transformer.final_layernorm.weight"]),
            "bias": np.asarray(state["transformer.final_layernorm.bias"]),
        },
        "layers": {
            "input_layernorm": norm("input_layernorm"),
            "post_attention_layernorm": norm("post_attention_layernorm"),
            "attention": {
                "query_key_value": {
                    "kernel": stack(
                        "attention.query_key_value.weight", lambda w: w.T.reshape(width, 3, num_heads, head_width)
                    ),
                    "bias": stack("attention.query_key_value.bias", lambda b: b.reshape(3, num_heads, head_width)),
                },
                "dense": {
                    "kernel": stack("attention.dense.weight", lambda w: w.T.reshape(num_heads, head_width, width)),
                    "bias": stack("attention.dense.bias"),
                },
            },
            "mlp": {
                name: {"kernel": stack(f"mlp.{name}.weight", np.transpose), "bias": stack(f"mlp.{name}.bias")}
                for name in ("dense_h_to_4h", "dense_4h_to_h")
            },
        },
    }
    for name in ("position_embeddings", "block_position_embeddings"):
        if f"transformer.{name}.weight" in state:
            params[name] = {"embedding": np.asarray(state[f"transformer.{name}.weight"])}
    return params
