"""A GLM in plain PyTorch, as its users would write it: the other side of `python -m tools peer`.

    python peer_torch.py FOLDER

FOLDER holds parameters.npz, batch.npz and shape.json. Answers "loss L" of the first step, then a line with the seconds
of one step for every line it reads. Runs in any interpreter with torch and numpy; it knows nothing of JAX.

Attention is PyTorch's own (scaled_dot_product_attention) with a mask, logits are of targets only, the optimizer is the
fused AdamW, and torch.compile sees loss and gradient whole.
"""

import contextlib
import json
import pathlib
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Layer(nn.Module):
    """One pre-layer-norm layer."""

    def __init__(self, width: int, heads: int, hidden_dropout: float, attention_dropout: float, gelu: str):
        super().__init__()
        self.heads, self.hidden_dropout, self.attention_dropout = heads, hidden_dropout, attention_dropout
        self.gelu = "tanh" if gelu == "tanh" else "none"
        self.input_layernorm, self.post_attention_layernorm = (nn.LayerNorm(width, eps=1e-5) for _ in range(2))
        self.query_key_value, self.dense = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dense_h_to_4h, self.dense_4h_to_h = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """x [B T D], seen bool [B 1 T T]."""
        batch, columns, width = x.shape
        projected = self.query_key_value(self.input_layernorm(x)).view(batch, columns, 3, self.heads, -1)
        q, k, v = projected.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=self.attention_dropout)
        attended = self.dense(attended.transpose(1, 2).reshape(batch, columns, width))
        x = x + F.dropout(attended, self.hidden_dropout)
        up = F.gelu(self.dense_h_to_4h(self.post_attention_layernorm(x)), approximate=self.gelu)
        return x + F.dropout(self.dense_4h_to_h(up), self.hidden_dropout)


class GLM(nn.Module):
    """Embeddings, layers, and the mean loss of the targets."""

    def __init__(self, shape: dict, parameters: dict[str, np.ndarray]):
        super().__init__()
        width, heads = shape["hidden_size"], shape["num_heads"]
        rates = shape["hidden_dropout"], shape["attention_dropout"]
        self.dropout = rates[0]
        tables = ("word_embeddings", "position_embeddings", "block_position_embeddings")
        self.tables = nn.ModuleDict({name: nn.Embedding(*parameters[f"{name}/embedding"].shape) for name in tables})
        self.layers = nn.ModuleList(Layer(width, heads, *rates, shape["gelu"]) for _ in range(shape["num_layers"]))
        self.final_layernorm = nn.LayerNorm(width, eps=1e-5)
        with torch.no_grad():
            for name, table in self.tables.items():
                table.weight.copy_(torch.from_numpy(parameters[f"{name}/embedding"]))
            _take(self.final_layernorm, parameters, "final_layernorm")
            for number, layer in enumerate(self.layers):
                for name in ("input_layernorm", "post_attention_layernorm"):
                    _take(getattr(layer, name), parameters, f"layers/{name}", number)
                for name in ("query_key_value", "dense"):
                    _take(getattr(layer, name), parameters, f"layers/attention/{name}", number)
                for name in ("dense_h_to_4h", "dense_4h_to_h"):
                    _take(getattr(layer, name), parameters, f"layers/mlp/{name}", number)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The mean loss in nats."""
        ids = batch["tokens"], batch["position_ids"], batch["block_position_ids"]
        x = sum(table(i) for table, i in zip(self.tables.values(), ids, strict=True))
        x = F.dropout(x, self.dropout)
        column = torch.arange(x.shape[1], device=x.device)
        seen = column[None, None] < torch.maximum(batch["prefix_lengths"][:, None, None], column[None, :, None] + 1)
        for layer in self.layers:
            x = layer(x, seen[:, None])
        index = batch["target_index"]
        x = self.final_layernorm(torch.gather(x, 1, index[..., None].expand(*index.shape, x.shape[-1])))
        logits = F.linear(x, self.tables["word_embeddings"].weight).float()
        losses = F.cross_entropy(logits.flatten(0, 1), batch["target_ids"].flatten(), reduction="none")
        weights = batch["target_weights"].flatten()
        return (losses * weights).sum() / weights.sum()


def _take(module, parameters, name, number=...):
    weight = parameters.get(f"{name}/kernel")
    if weight is None:
        module.weight.copy_(torch.from_numpy(parameters[f"{name}/scale"][number]))
    else:
        # [inputs outputs], both possibly of several axes, to PyTorch's [outputs inputs]
        flat = weight[number].reshape(module.in_features, module.out_features)
        module.weight.copy_(torch.from_numpy(flat).T)
    module.bias.copy_(torch.from_numpy(parameters[f"{name}/bias"][number].reshape(-1)))


def main(folder: str) -> None:
    """Builds the model, then steps when told to."""
    where = pathlib.Path(folder)
    shape = json.loads((where / "shape.json").read_text())
    device = torch.device(shape["device"])
    torch.set_float32_matmul_precision("highest")
    model = GLM(shape, dict(np.load(where / "parameters.npz"))).to(device)
    batch = {
        name: torch.from_numpy(a).to(device, torch.float32 if a.dtype == np.float32 else torch.int64)
        for name, a in np.load(where / "batch.npz").items()
    }
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1, fused=True
    )
    dtype = getattr(torch, shape["dtype"])

    def loss_of(batch):
        narrow = contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
        with narrow:
            return model(batch)

    compiled = torch.compile(loss_of) if shape["compiled"] else loss_of

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = compiled(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()  # which waits for the device; the optimizer's kernels follow

    def finished():
        if device.type == "cuda":
            torch.cuda.synchronize()

    print("loss", step(), flush=True)
    for _ in range(2):
        step()
    for _ in sys.stdin:
        finished()
        began = time.perf_counter()
        step()
        finished()
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
