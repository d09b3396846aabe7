"""The ML-Decoder head: queries that look at the map (Ridnik et al., WACV 2023, arXiv:2111.12933)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from train.backbones import Features
from train.noise import Dropout


class _CrossAttention(nn.Module):
    """Multi-head attention from queries to places, [N, K, E], [N, P, E] -> [N, K, E]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        for linear in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, queries: Tensor, places: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, queries), (self.key, places), (self.value, places))
        )
        out: Tensor = self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class MlDecoderHead(nn.Module):
    """K queries attend to the map; each answers for a group of ceil(C / K) classes.

    One decoder layer without self-attention: the map's places, projected to E and rectified, are attended by
    the queries, then a feed-forward layer, then each query's own linear map to its group ("group
    fully-connected"). With K = C every class has its query. The queries are fixed random vectors, which the
    paper finds to be as good as learned ones. Dropout as in the paper's code, but not on the attention's
    weights. It sees the map alone, not the backbone's pooled vector.

    Args:
        channels: D of the map.
        classes: C.
        dim: E. The paper: 768.
        queries: K, at most; C where there are fewer classes. The paper: 100, or C.
        heads: of the attention. The paper: 8.
        feed_forward: width inside the feed-forward layer. The paper: 2048.
        learned: train the queries too.
        dropout: the paper: 0.1.
    """

    queries: Tensor

    def __init__(
        self,
        channels: int,
        classes: int,
        dim: int = 768,
        queries: int = 100,
        heads: int = 8,
        feed_forward: int = 2048,
        learned: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.classes = classes
        count = min(queries, classes)
        group = -(-classes // count)
        vectors = torch.randn(count, dim)
        if learned:
            self.queries = nn.Parameter(vectors)
        else:
            self.register_buffer("queries", vectors)
        self.embed = nn.Linear(channels, dim)
        self.attention = _CrossAttention(dim, heads)
        self.norm_query, self.norm_attention, self.norm_out = (nn.LayerNorm(dim) for _ in range(3))
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, feed_forward), nn.ReLU(), Dropout(dropout), nn.Linear(feed_forward, dim)
        )
        self.drop_query, self.drop_attention, self.drop_out = (Dropout(dropout) for _ in range(3))
        self.group_weight = nn.Parameter(torch.empty(count, dim, group))
        self.group_bias = nn.Parameter(torch.zeros(classes))
        # As a linear layer of `dim` inputs and one group's outputs: the three axes together would mislead
        # xavier_normal_ into a fan of dim * group.
        nn.init.normal_(self.group_weight, std=(2 / (dim + group)) ** 0.5)

    def forward(self, features: Features) -> Tensor:
        """[N, D, H, W] of the map -> logit [N, C]."""
        places = torch.relu(self.embed(features.map.flatten(2).transpose(1, 2)))  # [N, H * W, E]
        x = self.queries.to(places.dtype).expand(places.shape[0], -1, -1)  # [N, K, E]
        x = self.norm_query(x + self.drop_query(x))
        x = self.norm_attention(x + self.drop_attention(self.attention(x, places)))
        x = self.norm_out(x + self.drop_out(self.feed_forward(x)))
        grouped = torch.einsum("nke,keg->nkg", x, self.group_weight)
        # The last group may answer for more than there are: those outputs are cut off.
        return grouped.flatten(1)[:, : self.classes] + self.group_bias
