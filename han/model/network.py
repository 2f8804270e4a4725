"""The Hierarchical Attention Network of Yang et al. (NAACL 2016), over ragged reviews.

Two levels of the same shape: words make a sentence vector, sentences make a review vector. Each is a bidirectional GRU and an attention
(equations 5 to 7 for words, 8 to 10 for sentences). The read-out is linear, so a logit is a sum of signed shares of the sentences.

A network may have a table of n-grams (see `ngrams`). Then the input of a token is its word vector plus a projection of the weights of the
n-grams that end at it. n-grams do not cross sentences, and the two attentions remain the only way to the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from han.config import ModelConfig
from han.model.gru import RaggedGRU, SortedRows, compiled, padded, recurrent_weights, row_product, run_in_threads
from han.model.ngrams import NgramTable
from han.types import Attention, Float32s, RaggedBatch

# Beyond this size of the folded table the words of each batch are projected instead: hidden 50 and 60,000 words need 72 MB.
FOLDED_BYTES = 400_000_000


class HAN(nn.Module):
    """The network: logits and both attentions of reviews of any lengths."""

    def __init__(
        self, config: ModelConfig, *, num_words: int, embedding_size: int, num_classes: int, ngrams: NgramTable | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.ngrams = ngrams
        # Sparse: a step's gradient is as large as its words, not as the vocabulary.
        self.embedding = nn.Embedding(num_words, embedding_size, sparse=True)
        self.words = Level(embedding_size, config.word_hidden, config.word_attention)
        sentence_hidden = config.sentence_hidden if config.sentence_encoder else None
        self.sentences = Level(2 * config.word_hidden, sentence_hidden, config.sentence_attention)
        self.read_out = nn.Linear(self.sentences.size, num_classes)
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.dropout = nn.Dropout(config.dropout)
        # Starts at 0: the first answers are those of a network without n-grams.
        self.ngram_projection = nn.Parameter(torch.zeros(ngrams.num_inputs, embedding_size)) if ngrams is not None else None

    def forward(self, batch: RaggedBatch) -> Attention:
        """Logits [R, C], word attention [T], sentence attention [S] of a batch whose token ids lie on this network's device."""
        return self.answer(self.inputs(batch), batch)

    def read_words(self, batch: RaggedBatch) -> tuple[Tensor, Tensor]:
        """The first half of `forward`: sentence vectors [S, D] and word attention [T]."""
        vectors_SD, attention_T = self.words(self.inputs(batch), batch.sentence_lengths)
        return vectors_SD, attention_T

    def inputs(self, batch: RaggedBatch) -> Tensor:
        """The inputs of the word level, [T, E]: `word_vectors`, in training after dropout."""
        return self._dropped(self.word_vectors(batch), batch.sentence_lengths)

    def answer(self, inputs_TE: Tensor, batch: RaggedBatch) -> Attention:
        """`forward` of other inputs than the batch's own; of the batch only the lengths are read."""
        sentences_SD, word_attention = self.words(inputs_TE, batch.sentence_lengths)
        reviews_RD, sentence_attention = self.sentences(self.dropout(sentences_SD), batch.review_lengths)
        logits = self.logits(self.dropout(reviews_RD))
        return Attention(logits=logits, word_attention=word_attention, sentence_attention=sentence_attention, sentence_vectors=sentences_SD)

    def logits(self, reviews_RD: Tensor) -> Tensor:
        """[R, C] of review vectors; not changed by the other reviews of the batch."""
        return row_product(reviews_RD, self.read_out.weight, self.read_out.bias)

    def word_vectors(self, batch: RaggedBatch) -> Tensor:
        """The input [T, E] of every token: its word vector, plus the projected weights of its n-grams if there is a table."""
        vectors_TE: Tensor = self.embedding(batch.token_ids)
        if self.ngrams is None or self.ngram_projection is None:
            return vectors_TE
        inputs_TF = batch.ngrams if batch.ngrams is not None else torch.from_numpy(ngram_inputs(self.ngrams, batch))
        return torch.addmm(vectors_TE, inputs_TF.to(vectors_TE), self.ngram_projection)

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
        self.context = nn.Parameter(torch.empty(attention_size))
        nn.init.normal_(self.context, std=0.1)

    def forward(self, inputs_TE: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(vectors [rows, size], attention [T]) of T inputs that lie row after row; lengths: int64, on the CPU, all >= 1."""
        states_TD = self.gru(inputs_TE, lengths) if self.gru is not None else inputs_TE
        scores_T = self.scores(states_TD)
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

    def scores(self, states_TD: Tensor) -> Tensor:
        """The inputs of the softmax of the attention, [T]: u . c of each state."""
        return row_product(torch.tanh(row_product(states_TD, self.attention.weight, self.attention.bias)), self.context[None])[:, 0]


def ngram_inputs(table: NgramTable, batch: RaggedBatch) -> Float32s:
    """The inputs [T, F] of a batch's tokens by the table."""
    return table.inputs(batch.token_ids.cpu().numpy(), batch.sentence_lengths.numpy())


class FoldedHAN:
    """A trained `HAN` on the CPU without gradients: compiled kernels, and the input projection folded into the embedding table.

    The answers are those of `HAN.forward` within the rounding of float32. The table is computed here, so later changes of the network's
    word level have no effect. Needs `gru.compiled()`.
    """

    def __init__(self, network: HAN) -> None:
        """network: on the CPU, float32 or float64; evaluation mode is assumed, dropout is left out."""
        self.network = network
        self.words = CompiledLevel(network.words)
        self.sentences = CompiledLevel(network.sentences) if network.sentences.gru is not None else None
        weight = network.embedding.weight
        self.table: NDArray[Any] | None = None
        if weight.shape[0] * 6 * self.words.hidden * weight.element_size() <= FOLDED_BYTES:
            self.table = self._project(np.arange(len(weight)))
        # The projection of an n-gram input and the input projection of the GRU are one product.
        self.ngram_rows = None
        if network.ngram_projection is not None and network.ngrams is not None:
            longer = network.ngram_projection[network.ngrams.weights.shape[1] :]
            self.ngram_rows = self.words.project(longer, bias=False).reshape(len(longer), -1)

    @torch.no_grad()
    def _project(self, word_ids: NDArray[np.int64]) -> NDArray[Any]:
        """The projected inputs of words: their vectors, and their inputs from unigrams, which depend on nothing else."""
        vectors = self.network.embedding.weight[torch.from_numpy(word_ids)]
        if self.network.ngrams is not None and self.network.ngram_projection is not None:
            unigrams = torch.from_numpy(self.network.ngrams.unigrams(word_ids)).to(vectors)
            vectors = torch.addmm(vectors, unigrams, self.network.ngram_projection[: unigrams.shape[1]])
        return self.words.project(vectors)

    def _ngram_inputs(self, batch: RaggedBatch) -> NDArray[Any] | None:
        """The inputs of the longer n-grams."""
        if self.network.ngrams is None:
            return None
        inputs = self.network.ngrams.inputs(batch.token_ids.numpy(), batch.sentence_lengths.numpy(), left_out=1)
        return inputs.astype(self.network.embedding.weight.numpy().dtype, copy=False)

    @torch.inference_mode()
    def read_words(self, batch: RaggedBatch) -> tuple[Tensor, Tensor]:
        """As `HAN.read_words`, where the network looks up the n-grams itself. A token id outside the vocabulary is an IndexError."""
        ids = batch.token_ids.numpy()
        if ids.min() < 0 or ids.max() >= self.network.embedding.num_embeddings:
            raise IndexError(f"token ids from {ids.min()} to {ids.max()}, the vocabulary has {self.network.embedding.num_embeddings} words")
        table = self.table
        if table is None:
            distinct, ids = np.unique(ids, return_inverse=True)
            table = self._project(distinct)
        read = self.words(table, ids, batch.sentence_lengths, self._ngram_inputs(batch), self.ngram_rows)
        return read.vectors, read.attention

    @torch.inference_mode()
    def __call__(self, batch: RaggedBatch) -> Attention:
        """As `HAN.forward`. A token id outside the vocabulary is an IndexError."""
        vectors_SD, word_attention = self.read_words(batch)
        if self.sentences is None:
            reviews_RD, sentence_attention = self.network.sentences(vectors_SD, batch.review_lengths)
        else:
            read = self.sentences(self.sentences.project(vectors_SD), np.arange(len(vectors_SD)), batch.review_lengths)
            reviews_RD, sentence_attention = read.vectors, read.attention
        logits = self.network.logits(reviews_RD)
        return Attention(logits=logits, word_attention=word_attention, sentence_attention=sentence_attention, sentence_vectors=vectors_SD)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRows:
    """The outputs of a compiled level for its rows."""

    vectors: Tensor  # [rows, 2H]
    attention: Tensor  # [T]
    states: NDArray[Any]  # [T, 2H], empty unless asked for
    scores: NDArray[Any]  # [T], what the softmax reads; empty unless asked for


class CompiledLevel:
    """The weights of one `Level` with a GRU, laid out for the kernels."""

    def __init__(self, level: Level) -> None:
        assert level.gru is not None  # noqa: S101
        kernels = compiled()
        assert kernels is not None  # noqa: S101
        self.gru, self.kernels = level.gru, kernels
        weight = level.attention.weight.detach().numpy()
        self.hidden, self.width = weight.shape[1] // 2, kernels.WIDTH[weight.dtype]
        self.recurrent = recurrent_weights(self.gru.both_ways("weight_hh"), self.gru.both_ways("bias_hh"), self.width)
        attention = (weight.T, level.attention.bias.detach().numpy(), level.context.detach().numpy())
        self.attention = tuple(padded(array, self.width) for array in attention)

    @classmethod
    def of(cls, level: Level) -> CompiledLevel | None:
        """The weights as they are now; None on a GPU, without a GRU or without the compiled kernels."""
        can = compiled() is not None and level.gru is not None and not level.context.is_cuda
        return cls(level) if can and level.context.dtype in (torch.float32, torch.float64) else None

    @torch.no_grad()
    def project(self, inputs: Tensor, *, bias: bool = True) -> NDArray[Any]:
        """W_ih x + b_ih of rows [N, E], flat [N * 6H]; without `bias` W_ih x."""
        projected = self.gru.project(inputs) if bias else inputs @ torch.cat(self.gru.both_ways("weight_ih")).T
        return projected.numpy().ravel()

    def __call__(
        self,
        table: NDArray[Any],
        ids: NDArray[np.int64],
        lengths: Tensor,
        added: NDArray[Any] | None = None,
        added_rows: NDArray[Any] | None = None,
        *,
        keep: bool = False,
    ) -> ReadRows:
        """ids: int64 [T], the row of `table` that is a token's input; added: [T, F] and added_rows: [F, 6H], whose product is added to the
        tokens' inputs; keep: also return states and scores."""
        if added is None or added_rows is None:
            added, added_rows = np.empty((0, 0), table.dtype), np.empty((0, 0), table.dtype)
        sorted_rows = SortedRows.of(lengths)
        vectors = np.empty((len(lengths), 2 * self.hidden), table.dtype)
        attention = np.empty(len(ids), table.dtype)
        states, scores = np.empty((len(ids) * keep, 2 * self.hidden), table.dtype), np.empty(len(ids) * keep, table.dtype)
        rows = (sorted_rows.starts, sorted_rows.lengths)
        weights = (*self.recurrent, *self.attention, sorted_rows.rows, self.width)
        filled = (vectors, attention, states, scores)
        run_in_threads(self.kernels.infer, len(ids), table, ids, added, added_rows, *rows, *weights, after=filled)
        return ReadRows(vectors=torch.from_numpy(vectors), attention=torch.from_numpy(attention), states=states, scores=scores)


def softmax_in_rows(scores_T: Tensor, rows_T: Tensor, num_rows: int) -> Tensor:
    """Softmax of [T] scores within each row; rows_T says which row a score belongs to."""
    highest = scores_T.new_full((num_rows,), -torch.inf).scatter_reduce(0, rows_T, scores_T.detach(), "amax")
    exponentials = torch.exp(scores_T - highest.index_select(0, rows_T))
    # in float32 the shares of a sentence of 10,000 words sum to 1 only within 4e-4
    totals = exponentials.new_zeros(num_rows, dtype=torch.float64).index_add(0, rows_T, exponentials.double())
    return (exponentials / totals.index_select(0, rows_T)).to(scores_T.dtype)
