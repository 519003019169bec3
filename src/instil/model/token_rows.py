"""Some rows of a frozen embedding that are trained beside adapters (PEFT's ``trainable_token_indices``).

New tokens, such as those that mark turns, need rows of their own, and no more: the other rows stay as they are, take no
gradient and no moments. Where the embedding is the head, too, the same rows are the head's.

Shape suffixes: N tokens · K rows that are trained · V vocabulary · D width · S rows the head is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instil.errors import SettingsError
from instil.model.decoder import Decoder
from instil.model.fast.gemm import Linear, linear


class TokenRows(nn.Embedding):
    """An embedding whose table is frozen but for some rows, which are a parameter of their own (``rows``, [K, D]).

    They lie on ``device``, by default the table's.
    """

    def __init__(self, table: nn.Embedding, ids: Sequence[int], device: torch.device | None = None) -> None:
        with torch.device("meta"):
            super().__init__(table.num_embeddings, table.embedding_dim)
        self.weight, self.token_ids = table.weight, tuple(ids)
        weight_VD = table.weight.detach()
        device = device or weight_VD.device
        ids_K = torch.tensor(self.token_ids, device=device)
        slot_V = torch.full((len(weight_VD),), -1, device=device)
        slot_V[ids_K] = torch.arange(len(ids_K), device=device)
        self.ids_K: Tensor
        self.slot_V: Tensor
        self.register_buffer("ids_K", ids_K, persistent=False)
        self.register_buffer("slot_V", slot_V, persistent=False)
        self.rows = nn.Parameter(weight_VD.new_empty(len(ids_K), table.embedding_dim, device=device))
        if not weight_VD.is_meta:
            self.begin_at(weight_VD)

    @torch.no_grad()
    def begin_at(self, weight_VD: Tensor) -> None:
        """Take the rows from a table that was elsewhere when this was made."""
        self.rows.copy_(weight_VD[self.ids_K])

    def forward(self, ids_N: Tensor) -> Tensor:
        """Rows of the table, [N, D]."""
        slot_N = self.slot_V[ids_N]
        own_ND = F.embedding(slot_N.clamp(min=0), self.rows)  # of each token, so that nobody waits to know how many
        return torch.where(slot_N[:, None] >= 0, own_ND, F.embedding(ids_N, self.weight))


class TokenHead(Linear):
    """The head of a decoder whose embedding is the head, too, and has trained rows."""

    def __init__(self, head: Linear, embedding: TokenRows) -> None:
        with torch.device("meta"):
            super().__init__(head.in_features, head.out_features, bias=False)
        self.weight, self.rows = head.weight, embedding.rows
        self.ids_K: Tensor
        self.register_buffer("ids_K", embedding.ids_K, persistent=False)

    def forward(self, hidden_SD: Tensor) -> Tensor:
        """Scores, [S, V]."""
        scores_SV = super().forward(hidden_SD)
        return scores_SV.index_copy(1, self.ids_K, linear(hidden_SD, self.rows).to(scores_SV.dtype))

    def low_rank(self, hidden_SD: Tensor) -> Tensor:
        """How far the scores of the trained rows are from those of the frozen ones, [S, K]; as an adapter reads."""
        return linear(hidden_SD, self.rows - self.weight[self.ids_K])

    @property
    def lora_b(self) -> Tensor:
        """Where they belong among all scores, [V, K]."""
        found_VK = self.weight.new_zeros(self.out_features, len(self.ids_K))
        return found_VK.scatter_(0, self.ids_K[None], 1.0)


def check_rows(decoder: Decoder, ids: Sequence[int]) -> None:
    """Whether these rows can be trained.

    Raises:
        SettingsError: an id is not one of the vocabulary, comes twice, or there are such rows already.
    """
    size = decoder.spec.vocab_size
    if isinstance(decoder.embed, TokenRows):
        raise SettingsError("this decoder has trained rows already; merge them first")
    if strange := [token for token in ids if not 0 <= token < size]:
        raise SettingsError(
            f"lora.trainable_token_indices: {strange[0]} is no token's id; the model has those from 0 to {size - 1:,}"
        )
    if len(set(ids)) != len(ids):
        raise SettingsError("lora.trainable_token_indices names a token twice")


def train_rows(decoder: Decoder, ids: Sequence[int]) -> TokenRows:
    """Let some rows of a decoder's embedding be trained, and of its head where that is the embedding; returns them.

    Raises:
        SettingsError: as `check_rows`.
    """
    check_rows(decoder, ids)
    decoder.embed.weight.requires_grad_(False)
    decoder.embed = rows = TokenRows(decoder.embed, ids, decoder.device)
    if decoder.spec.tied:
        decoder.head = TokenHead(decoder.head, rows)
    return rows


def merge_rows(decoder: Decoder) -> None:
    """Put the trained rows into their table, which is an embedding like others again."""
    rows = decoder.embed
    if not isinstance(rows, TokenRows):
        return
    with torch.no_grad():
        rows.weight.index_copy_(0, rows.ids_K, rows.rows)
    with torch.device("meta"):
        decoder.embed = nn.Embedding(rows.num_embeddings, rows.embedding_dim)
        plain = Linear(rows.embedding_dim, rows.num_embeddings, bias=False)
    decoder.embed.weight = rows.weight
    if isinstance(decoder.head, TokenHead):
        plain.weight = rows.weight
        decoder.head = plain
