"""Full context embeddings of Matching Networks: LSTMs through which an embedding depends on the whole support set.

Vinyals et al. 2016, appendix A. Two LSTMs as wide as the embedding D have 16 D^2 parameters for the support, and one has 12 D^2 for the
queries; 84x84 images and four blocks of 64 filters make D = 1600, and 41 + 31 = 72 million. That is what the paper does.
"""

import torch
from torch import Tensor, nn


class SupportContext(nn.Module):
    """g(x_i, S) = forward h_i + backward h_i + g'(x_i), a bidirectional LSTM over the support in its order (A.2)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, features, batch_first=True, bidirectional=True)

    def forward(self, support: Tensor) -> Tensor:
        """(T, n, D) -> (T, n, D)."""
        forward, backward = self.lstm(support)[0].chunk(2, -1)
        return forward + backward + support


class QueryContext(nn.Module):
    """An LSTM that in each of `steps` steps reads the support by attention (A.1), from h_0 = f'(x):

    r = sum_i softmax_i( h_{k-1} g(x_i) ) g(x_i),   u, c_k = LSTM( f'(x), [h_{k-1}, r], c_{k-1} ),   h_k = u + f'(x).
    """

    def __init__(self, features: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.cell = nn.LSTMCell(2 * features, features)  # r among the inputs: a cell's gates add up what all its inputs give

    def forward(self, query: Tensor, support: Tensor) -> Tensor:
        """Queries (T, n, D) that read supports (T, m, D): (T, n, D)."""
        h, c = query, torch.zeros_like(query).flatten(0, 1)
        for _ in range(self.steps):
            read = (h @ support.mT).softmax(-1) @ support
            u, c = self.cell(torch.cat([query, read], -1).flatten(0, 1), (h.flatten(0, 1), c))
            h = u.view_as(query) + query
        return h
