"""GLM as a Linen module (Du et al., ACL 2022, section 2; the original's GLMModel).

A pre-layer-norm Transformer with three summed embeddings (token, position of the blank in Part A, position inside the
blank), GLM's attention mask (glm_jax/model/visibility.py) and a head tied to the token embedding. Parameters are
float32 and carry logical axis names; layers are stacked on axis 0. Training, scoring, prefill and cached decoding all
run this one network.
"""

import collections
import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from flax.core import meta
from flax.linen import module as linen_module
from jaxtyping import Array, Float, Int

from glm_jax.model.adapters import projected_prefix
from glm_jax.model.batch import Slot
from glm_jax.model.cached_attention import KVCache, context_layout
from glm_jax.model.checks import check_model_inputs
from glm_jax.model.config import REMAT_POLICIES, GLMConfig
from glm_jax.model.dropout import dropout
from glm_jax.model.layers import Embedding, LayerNorm
from glm_jax.model.ops import linear
from glm_jax.model.transformer_layer import MLP, Attention, Layer, LayerInputs


@struct.dataclass
class Outputs:
    """What `GLM` returns beside its result; None for what was not asked for."""

    # Tuple of [B T D]: the sum of the embeddings, then the output of each layer, before the final layer norm. The last
    # is [B K D] with `target_index`.
    hidden_states: Any = None
    attentions: Any = None  # tuple of float32 [B N T T] for each layer; the last is [B N K T] with `target_index`
    # Keys and values of every layer, stacked or a tuple as the parameters are: of a context as `KVCache` holds them; of
    # the newest tokens, with a cache, [B W N H].
    keys_values: Any = None


class GLM(nn.Module):
    """The language model: `GLM(config).apply({"params": params}, **batch.model_inputs())`.

    Attributes:
      config: shape and numerics.
      attention, mlp, layer: the classes that layers are made of, for variants: see docs/custom_layers.md.
      absolute_positions: False leaves out both tables of positions, for attention that encodes positions by itself.
    """

    config: GLMConfig
    attention: type[nn.Module] = Attention
    mlp: type[nn.Module] = MLP
    layer: type[nn.Module] = Layer
    absolute_positions: bool = True

    def setup(self):
        """Declares embeddings, stacked layers and the final layer norm."""
        config = self.config
        table = functools.partial(Embedding, width=config.hidden_size, stddev=config.init_std, dtype=config.dtype)
        self.word_embeddings = table(config.vocab_size, row_axis="vocab")
        if self.absolute_positions:
            self.position_embeddings = table(config.num_positions, row_axis="positions")
            if config.block_positions:
                self.block_position_embeddings = table(config.num_positions, row_axis="positions")
        # Taken as they are, because a tuning method may have put its own parameters beside those of a module; every
        # module checks the shapes of those that it declares. Decoding passes a tuple of the layers' parameters (see
        # glm_jax/decoding/steps.py). A method that trains the last layers only has the others in "first_layers".
        layers = self.get_variable("params", "layers")
        self.first_layers = self.get_variable("params", "first_layers")
        self.layers = self.param("layers", self._init_layers) if layers is None else layers
        self._check_layer_count()
        self.final_layernorm = LayerNorm(config.dtype)

    def _check_layer_count(self):
        stacks = [stack for stack in (self.first_layers, self.layers) if stack is not None]
        sizes = [len(s) if isinstance(s, tuple) else jax.tree.leaves(s)[0].shape[0] for s in stacks]
        if sum(sizes) != self.config.num_layers:
            raise ValueError(f"the parameters have {sum(sizes)} layers, but the model {self.config.num_layers}")

    def _init_layers(self, key):
        config = dataclasses.replace(self.config, attention_backend="dense")  # cuDNN's cannot be vmapped
        x, ids, one = (
            jnp.zeros((1, config.hidden_size), config.dtype),
            jnp.zeros((1, 1), jnp.int32),
            jnp.zeros(1, jnp.int32),
        )
        layer = self.layer(config, attention=self.attention, mlp=self.mlp, parent=None)
        init = jax.vmap(lambda key: layer.init(key, x, LayerInputs(one, ids, ids))["params"])
        return meta.add_axis(init(jax.random.split(key, config.num_layers)), 0, {meta.PARTITION_NAME: "layers"})

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        position_ids: Int[Array, "B T"],
        block_position_ids: Int[Array, "B T"],
        prefix_lengths: Int[Array, "B *P"],
        target_index: Int[Array, "B K"] | None = None,
        *,
        segment_ids: Int[Array, "B T"] | None = None,
        slots: tuple[Slot, ...] | None = None,
        input_embeddings: Float[Array, "B T D"] | None = None,
        prefix: tuple[Float[Array, "Y _ P N H"], Float[Array, "Y _ P N H"]] | None = None,
        cache: KVCache | None = None,
        deterministic: bool = True,
        head: bool = True,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        output_keys_values: bool = False,
    ) -> Float[Array, "B _ _"] | tuple[Float[Array, "B _ _"], Outputs]:
        """Float32 logits at every position [B T V], or at the positions `target_index` only [B K V].

        With `target_index` the other positions neither meet the vocabulary nor pass the last layer beyond its keys and
        values. See `check_batch` for values, such as positions outside the tables, which give NaN here.

        Args:
          tokens: the row: Part A, then Part B, then padding.
          position_ids: positions in Part A, of the token or of its blank.
          block_position_ids: positions inside a blank, 0 in Part A.
          prefix_lengths: the length of Part A; [B P] with P slots.
          target_index: the positions whose output is asked for.
          segment_ids: separate several texts in a row, or several answers to one text: a token sees its own segment,
            and segment 0.
          slots: the static parts of packed rows, invisible to each other (`pack_objectives`).
          input_embeddings: take the place of the word embeddings of `tokens`, whose values are then not read (soft
            prompts, glm_jax/model/soft_prompt.py).
          prefix: trained keys and values of every layer, visible to every position (P-tuning v2): two arrays
            [layers, B or 1, P, heads, head width]. Position ids do not count them.
          cache: of all layers, for decoding: the row is the newest token of each of W answers, T = W, and
            `prefix_lengths` are the lengths of the contexts.
          deterministic: False applies dropout and needs rngs={"dropout": key}, unless both rates are 0.
          head: False returns what the head reads, after the final layer norm, [B _ D] in the compute dtype.
          output_hidden_states, output_attentions, output_keys_values: also return these, see `Outputs`. Attention
            probabilities need the dense backend.

        Returns:
          The logits, or with one of the `output_` arguments (logits, Outputs).

        Raises:
          ValueError: arguments whose shapes or dtypes do not belong together, or that exclude each other.
        """
        config = self.config
        if prefix is None and cache is None:
            prefix = self.trained_prefix()
        check_model_inputs(
            config, tokens, position_ids, block_position_ids, prefix_lengths, target_index, segment_ids, slots,
            input_embeddings, prefix,
        )  # fmt: skip
        if output_attentions and slots and len(slots) > 1:
            raise ValueError(f"output_attentions needs one example a row, not {len(slots)} slots: unpack the batch")
        if output_keys_values and target_index is not None:
            raise ValueError("output_keys_values returns those of every position: leave out target_index")
        others = {"target_index": target_index, "segment_ids": segment_ids, "slots": slots, "prefix": prefix}
        others |= {"output_attentions": output_attentions or None}
        if cache is not None and (names := [name for name, value in others.items() if value is not None]):
            raise ValueError(f"a step with a cache takes no {' and no '.join(names)}")
        if config.layout != "glm":
            position_ids = _one_position(position_ids, block_position_ids, prefix_lengths, cache)
        if config.layout == "causal" and cache is None:
            prefix_lengths = jnp.zeros_like(prefix_lengths)
        x = self._embed(tokens, position_ids, block_position_ids, input_embeddings)
        dropout_keys = None
        if not deterministic and config.adapter_dropout and prefix is not None:
            prefix = self._drop_prefix(prefix, len(tokens))
        if not deterministic and (config.hidden_dropout or config.attention_dropout or config.adapter_dropout):
            key, *dropout_keys = jax.random.split(self.make_rng("dropout"), config.num_layers + 1)
            dropout_keys = jnp.stack(dropout_keys)
            x = dropout(x, config.hidden_dropout, key)
        inputs = LayerInputs(
            prefix_lengths, position_ids, block_position_ids, segment_ids=segment_ids, slots=slots,
            output_attentions=output_attentions,
        )  # fmt: skip
        names = {"hidden_states": output_hidden_states, "keys_values": output_keys_values}
        names = {name for name, asked in (names | {"attentions": output_attentions}).items() if asked}
        first, (x, outputs) = x, self._run_layers(x, inputs, target_index, dropout_keys, prefix, cache, names)
        result = self.final_layernorm(x)
        width = config.hidden_size
        if head:
            result, width = self._head(result), config.vocab_size
        result = result.reshape(tokens.shape[0], -1, width)
        if head and cache is None:
            result = nn.with_logical_constraint(result, ("batch", "targets", "vocab"))
        if not names:
            return result
        if output_hidden_states:
            states = (first, *outputs["hidden_states"])
            outputs["hidden_states"] = tuple(a.reshape(tokens.shape[0], -1, config.hidden_size) for a in states)
        return result, Outputs(**outputs)

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The word embeddings of `tokens` in the compute dtype, from which `input_embeddings` can be made."""
        return self.word_embeddings(tokens)

    def embed_text(self, tokens: Int[Array, "B P"]) -> Float[Array, "B P D"]:
        """What the first layer reads for a text at the positions 0, 1, … of Part A, without dropout."""
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        return self._embed(tokens, positions, jnp.zeros_like(positions), None).reshape(*tokens.shape, -1)

    def trained_prefix(self) -> tuple[Float[Array, "Y 1 P N H"], Float[Array, "Y 1 P N H"]] | None:
        """The keys and values that the parameters hold under "prefix" (glm_jax/model/adapters.py); None without any."""
        prefix, config = self.get_variable("params", "prefix"), self.config
        if prefix is None:
            return None
        if "keys" in prefix:
            return prefix["keys"][:, None], prefix["values"][:, None]
        if "tokens" not in prefix:
            return projected_prefix(prefix, config.num_layers, config.num_heads, config.head_width)
        vectors = prefix["tokens"].astype(config.dtype)
        return self.keys_values_of(vectors[None])

    def keys_values_of(
        self, embeddings: Float[Array, "1 P D"]
    ) -> tuple[Float[Array, "Y 1 P N H"], Float[Array, "Y 1 P N H"]]:
        """Keys and values of every layer for P vectors that stand alone, as a `prefix` for others; without dropout."""
        count = embeddings.shape[1]
        ids = jnp.zeros((1, count), jnp.int32)
        inputs = LayerInputs(jnp.full((1,), count, jnp.int32), ids, ids)
        x = embeddings.reshape(count, -1)
        _, outputs = self._run_layers(x, inputs, None, None, None, None, {"keys_values"}, capture=False)
        keys, values = (jnp.stack(a) if isinstance(a, tuple) else a for a in outputs["keys_values"])
        return jnp.transpose(keys, (0, 1, 4, 2, 3)), jnp.swapaxes(values, 2, 3)

    def _drop_prefix(self, prefix, batch):
        """Dropout of its own for each row, as in the code of P-tuning v2."""

        def drop(x):
            x = jnp.broadcast_to(x, (x.shape[0], batch, *x.shape[2:]))
            return dropout(x, self.config.adapter_dropout, self.make_rng("dropout"))

        return drop(prefix[0]), drop(prefix[1])

    def _embed(self, tokens, position_ids, block_position_ids, input_embeddings):
        config = self.config
        x = self.word_embeddings(tokens) if input_embeddings is None else input_embeddings.astype(config.dtype)
        if self.absolute_positions:
            x = x + self.position_embeddings(position_ids)
            if config.block_positions:
                x = x + self.block_position_embeddings(block_position_ids)
        return nn.with_logical_constraint(x.reshape(-1, config.hidden_size), ("batch", None))

    def _head(self, x):
        transposed = self.get_variable("params", "head")  # see glm_jax/decoding/steps.py
        if transposed is not None and len(x) > 1:
            return linear(x, transposed, "float32")
        return self.word_embeddings.attend(x)

    def _run_layers(self, x, inputs, target_index, dropout_keys, prefix, cache, names, capture=True):
        """x after all layers, the last one only at `target_index` if given; and a dict of the outputs `names`."""
        config = self.config
        # Modules in a layer sow into a collection of their own, which is stacked as the layers are.
        capture = capture and self.is_mutable_collection("intermediates")
        options = {"mutable": ["intermediates"], "capture_intermediates": _capture_filter()} if capture else {}

        def step(x, parts, query_index=None):
            params, key, prefix, layer_cache = parts
            if layer_cache is not None:
                layer_cache = layer_cache.replace(answer_length=cache.answer_length)
            prefix = None if prefix is None else tuple(prefix)
            layer_inputs = inputs.replace(query_index=query_index, prefix=prefix, cache=layer_cache)
            # Applied to its parameters, owned by no module.
            layer = self.layer(config, key is None, attention=self.attention, mlp=self.mlp, parent=None)
            rngs = None if key is None else {"dropout": key}
            result = layer.apply({"params": params}, x, layer_inputs, rngs=rngs, **options)
            before = x
            (x, outputs), variables = result if capture else (result, {})
            _check_layer_output(self, before, x, query_index)
            collected = {"hidden_states": x, "attentions": outputs.attentions}
            if "keys_values" in names:
                pair = outputs.keys, outputs.values
                collected["keys_values"] = context_layout(*pair) if cache is None else pair
            collected = {name: collected[name] for name in names}
            return x, collected | ({"intermediates": variables.get("intermediates", {})} if capture else {})

        if config.remat != "none":
            # A scan's body cannot be merged with anything across the barrier, so it needs no protection from CSE.
            step = jax.checkpoint(step, policy=REMAT_POLICIES[config.remat], prevent_cse=not config.scan_layers)
        trained = None if prefix is None else list(prefix)
        parts = [dropout_keys, trained, None if cache is None else cache.replace(answer_length=None)]
        first_outputs = None
        if self.first_layers is not None:
            size = jax.tree.leaves(self.first_layers)[0].shape[0]
            of_first, parts = _split(parts, [size])
            x, first_outputs = self._run_stack(step, x, [self.first_layers, *of_first], size)
        parts = [self.layers, *parts]
        count = config.num_layers - (target_index is not None)
        if isinstance(self.layers, tuple):
            layers = [_layer_of(parts, i) for i in range(config.num_layers)]
            x, collected = _loop(step, x, layers[:count])
            last = layers[count:]
        else:
            count -= config.num_layers - jax.tree.leaves(self.layers)[0].shape[0]
            first, last = _split(parts, [count])
            x, collected = self._run_stack(step, x, first, count)
            last = [_layer_of(last, 0)] if target_index is not None else []
        if first_outputs is not None:
            collected = _concatenate_outputs(first_outputs, collected)
        outputs = {name: collected[name] if name == "keys_values" else tuple(collected[name]) for name in names}
        if capture:
            self.put_variable("intermediates", "layers", collected["intermediates"])
        if last:
            x, collected = step(x, last[0], target_index)
            outputs = {name: (*outputs[name], collected[name]) for name in names}
            if capture:
                self.put_variable("intermediates", "last_layer", collected["intermediates"])
        return x, outputs

    def _run_stack(self, step, x, parts, count):
        """x after `count` layers whose parts are stacked, and what they return."""
        if self.config.scan_layers:
            return jax.lax.scan(step, x, parts)
        each = _split(parts, list(range(1, count)))[:count]
        return _loop(step, x, [_layer_of(layer, 0) for layer in each])


def _one_position(position_ids, block_position_ids, prefix_lengths, cache):
    """The positions of a row whose Part B goes on where Part A ends; in a step with a cache that place is given."""
    if cache is None:
        ends = prefix_lengths.reshape(len(position_ids), -1)[:, :1] - 1
        position_ids = jnp.where(block_position_ids > 0, ends, position_ids)
    return position_ids + block_position_ids


def _check_layer_output(model, before, after, query_index):
    """Raises ValueError for a layer of the user's that returns another dtype or shape than it was given."""
    rows = before.shape[0] if query_index is None else query_index.size
    if after.dtype != before.dtype or after.shape != (rows, before.shape[1]):
        parts = ", ".join(part.__name__ for part in (model.layer, model.attention, model.mlp))
        raise ValueError(
            f"a layer ({parts}) returns {after.dtype}{list(after.shape)}, but must return "
            f"{before.dtype}{[rows, before.shape[1]]}: compute in config.dtype (nn.Dense(…, dtype=config.dtype))"
        )


def _concatenate_outputs(first, rest):
    """What consecutive layers returned, as one; `rest` may be of no layers."""
    if not rest:
        return first

    def join(a, b):
        if isinstance(a, list | tuple):  # one entry a layer
            return [*a, *b]
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), a, b)

    joined = {name: join(first[name], rest[name]) for name in first if name != "keys_values"}
    if "keys_values" in first:
        joined["keys_values"] = tuple(map(join, first["keys_values"], rest["keys_values"]))
    return joined


def _loop(step, x, layers):
    """As `jax.lax.scan`, but traces each layer; outputs of all layers are tuples, and intermediates are stacked."""
    collected = []
    for parts in layers:
        x, outputs = step(x, parts)
        collected.append(outputs)
    if not collected:
        return x, collections.defaultdict(tuple)
    merged = {name: [outputs[name] for outputs in collected] for name in collected[0]}
    if "intermediates" in merged:
        merged["intermediates"] = jax.tree.map(lambda *a: jnp.stack(a), *merged["intermediates"])
    if "keys_values" in merged:
        merged["keys_values"] = tuple(zip(*merged["keys_values"], strict=True))
    return x, merged


def _layer_of(tree, i):
    """The parts of layer i, from arrays that are stacked on axis 0 or tuples of one part a layer."""
    return jax.tree.map(lambda part: part[i], tree, is_leaf=lambda part: isinstance(part, tuple))


def _split(tree, boundaries):
    """Cuts every leaf along axis 0. One split, because its gradient is one concatenation."""
    leaves, structure = jax.tree.flatten(tree)
    if not leaves:
        return [tree] * (len(boundaries) + 1)
    return [structure.unflatten(parts) for parts in zip(*(jnp.split(a, boundaries) for a in leaves), strict=True)]


def _capture_filter():
    """The `capture_intermediates` of the apply that is running; Linen has no public name for it."""
    stack = linen_module._context.capture_stack
    return stack[-1] if stack else False


def init_params(model: GLM | GLMConfig, key: Any) -> Any:
    """Fresh parameters, boxed with their logical axis names (`flax.linen.get_partition_spec`, `flax.linen.unbox`).

    Embeddings and kernels from N(0, init_std²), projections into the residual stream from
    N(0, init_std² / (2 · num_layers)), biases 0, layer norm scales 1, as in the original. A config stands for
    `GLM(config)`.
    """
    model = GLM(model) if isinstance(model, GLMConfig) else model
    config = dataclasses.replace(model.config, attention_backend="dense")  # no kernel is needed for the shapes
    ids = jnp.zeros((1, 1), jnp.int32)
    return model.clone(config=config).init(key, ids, ids, ids, jnp.zeros((1,), jnp.int32))["params"]


def parameter_count(model: GLM | GLMConfig) -> int:
    """Number of parameters, from shapes alone."""
    shapes = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
