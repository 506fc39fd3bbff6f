"""Networks over tokens and time: transformers and recurrent layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FusedAttention(nn.Module):
    """Queries, keys and values from one linear layer, torch's fused kernel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        qkv = self.qkv(x).reshape(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(n, t, d))


class PlainAttention(nn.Module):
    """Queries, keys and values from three linear layers, written out in matrix products."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), x.size(1), self.heads, self.size).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._split(self.q(x)), self._split(self.k(x)), self._split(self.v(x))
        weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(self.size), dim=-1)
        y = (weights @ v).transpose(1, 2).contiguous()
        return self.out(y.view(x.size(0), x.size(1), self.heads * self.size))


class Block(nn.Module):
    """Attention and an MLP, norms in front."""

    def __init__(self, attention: nn.Module, width: int) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), attention, nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches, a class token, learned positions, fused attention (Dosovitskiy et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 4, 4)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 24)), nn.Parameter(torch.randn(1, 17, 24))
        self.blocks = nn.Sequential(Block(FusedAttention(24, 4), 24), Block(PlainAttention(24, 3), 24))
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class TextEncoder(nn.Module):
    """Token and position embeddings, torch's own encoder layers, the mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(50, 16), nn.Embedding(12, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 6)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        return self.head(torch.tanh(self.encoder(x).mean(1)))


class GatedMlp(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class CausalDecoder(nn.Module):
    """Embedding, RMSNorm, causal attention, SwiGLU; the last token decides."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(40, 16)
        self.norm1, self.norm2, self.norm3 = nn.RMSNorm(16), nn.RMSNorm(16), nn.RMSNorm(16)
        self.q, self.k, self.v = (nn.Linear(16, 16, bias=False) for _ in range(3))
        self.out, self.mlp, self.head = nn.Linear(16, 16, bias=False), GatedMlp(16, 24), nn.Linear(16, 40)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        n, t, _ = x.shape
        y = self.norm1(x)
        heads = [layer(y).view(n, t, 4, 4).transpose(1, 2) for layer in (self.q, self.k, self.v)]
        y = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(n, t, 16))
        x = x + self.mlp(self.norm2(x))
        return self.head(self.norm3(x)[:, -1])


class LstmClassifier(nn.Module):
    """A convolution, two LSTM layers (the first both ways), the last step decides."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Conv1d(4, 8, 3, padding=1)
        self.one = nn.LSTM(8, 10, batch_first=True, bidirectional=True)
        self.two = nn.LSTM(20, 12, batch_first=True)
        self.hidden, self.head = nn.Linear(12, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.front(x)).transpose(1, 2)
        x, _ = self.two(self.one(x)[0])
        return self.head(torch.relu(self.hidden(x[:, -1])))


class GruTagger(nn.Module):
    """An embedding, a GRU, a label per step and the final state."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.gru = nn.Embedding(30, 8), nn.GRU(8, 12, num_layers=1, batch_first=True)
        self.tags, self.topic = nn.Linear(12, 4), nn.Linear(12, 3)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        sequence, state = self.gru(self.tokens(ids))
        return self.tags(sequence), self.topic(state[-1])
