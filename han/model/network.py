"""The Hierarchical Attention Network of Yang et al. (NAACL 2016), over ragged reviews.

Two levels of the same shape: words make a sentence vector, sentences make a review vector. Each is a bidirectional GRU and an attention
(equations 5 to 7 for words, 8 to 10 for sentences). The read-out is linear, so a logit is a sum of signed shares of the sentences.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from han.config import ModelConfig
from han.model.gru import RaggedGRU
from han.types import Attention, RaggedBatch


class HAN(nn.Module):
    """Reviews of any lengths in, logits and both attentions out."""

    def __init__(self, config: ModelConfig, *, num_words: int, embedding_size: int, num_classes: int) -> None:
        super().__init__()
        self.config = config
        # Sparse: a step's gradient is as large as its words, not as the vocabulary.
        self.embedding = nn.Embedding(num_words, embedding_size, sparse=True)
        self.words = Level(embedding_size, config.word_hidden, config.word_attention)
        sentence_hidden = config.sentence_hidden if config.sentence_encoder else None
        self.sentences = Level(2 * config.word_hidden, sentence_hidden, config.sentence_attention)
        self.read_out = nn.Linear(self.sentences.size, num_classes)
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, batch: RaggedBatch) -> Attention:
        """Logits [R, C], word attention [T], sentence attention [S] of a batch whose token ids lie on this network's device."""
        embedded_TE = self._dropped(self.embedding(batch.token_ids), batch.sentence_lengths)
        sentences_SD, word_attention = self.words(embedded_TE, batch.sentence_lengths)
        reviews_RD, sentence_attention = self.sentences(self.dropout(sentences_SD), batch.review_lengths)
        logits = self.read_out(self.dropout(reviews_RD))
        return Attention(logits=logits, word_attention=word_attention, sentence_attention=sentence_attention)

    def _dropped(self, embedded_TE: Tensor, lengths: Tensor) -> Tensor:
        """One mask a sentence, the same at all its words (Gal and Ghahramani 2016): 20 times fewer random numbers than one a word."""
        if not self.training or self.embedding_dropout.p == 0:
            return embedded_TE
        mask_SE = self.embedding_dropout(embedded_TE.new_ones(len(lengths), embedded_TE.shape[1]))
        return embedded_TE * torch.repeat_interleave(mask_SE, lengths.to(mask_SE.device), dim=0, output_size=len(embedded_TE))


class Level(nn.Module):
    """Rows of vectors to one vector a row: h = GRU(x), or x; u = tanh(W h + b); a = softmax(u . c) within the row; sum of a h."""

    def __init__(self, input_size: int, hidden_size: int | None, attention_size: int) -> None:
        """hidden_size: None for a level without a GRU."""
        super().__init__()
        self.gru = RaggedGRU(input_size, hidden_size) if hidden_size is not None else None
        self.size = 2 * hidden_size if hidden_size is not None else input_size  # of a vector that comes out
        self.attention = nn.Linear(self.size, attention_size)
        self.context = nn.Parameter(torch.randn(attention_size) * 0.1)

    def forward(self, inputs_TE: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(vectors [rows, size], attention [T]) of T inputs that lie row after row; lengths: int64, on the CPU, all >= 1."""
        states_TD = self.gru(inputs_TE, lengths) if self.gru is not None else inputs_TE
        scores_T = torch.tanh(self.attention(states_TD)) @ self.context
        rows_T = torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(inputs_TE.device, non_blocking=True)
        attention_T = softmax_in_rows(scores_T.float(), rows_T, len(lengths))
        starts = (torch.cumsum(lengths, 0) - lengths).to(inputs_TE.device, non_blocking=True)
        # A bag is a row: its weighted sum, with gradients for both the states and the weights, without a loop or a pad.
        vectors = functional.embedding_bag(
            torch.arange(len(states_TD), device=states_TD.device),
            states_TD,
            starts,
            mode="sum",
            per_sample_weights=attention_T.to(states_TD.dtype),
        )
        return vectors, attention_T


def softmax_in_rows(scores_T: Tensor, rows_T: Tensor, num_rows: int) -> Tensor:
    """Softmax of [T] scores within each row; rows_T says which row a score belongs to."""
    highest = scores_T.new_full((num_rows,), -torch.inf).scatter_reduce(0, rows_T, scores_T.detach(), "amax")
    exponentials = torch.exp(scores_T - highest.index_select(0, rows_T))
    # in float32 the shares of a sentence of 10,000 words sum to 1 only within 4e-4
    totals = exponentials.new_zeros(num_rows, dtype=torch.float64).index_add(0, rows_T, exponentials.double())
    return (exponentials / totals.index_select(0, rows_T)).to(scores_T.dtype)
