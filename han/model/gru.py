"""A bidirectional GRU over rows of any lengths, without padding.

The weights are those of `torch.nn.GRU`. On a GPU its cuDNN kernel runs over the packed rows. On a CPU the recurrence is an autograd
Function over compiled kernels (`kernels`), because the backward pass of torch's own packed GRU costs the square of the batch. Where numba
cannot be imported, `_Recurrence` computes the same in torch, one time step after another.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

_WAYS = ("", "_reverse")  # suffixes of nn.GRU's parameters
_FEWEST_ROWS, _FEWEST_COLUMNS = 12, 16  # of a product that is rounded as any larger one, with one or two threads (MKL)
_TOKENS_FOR_THREADS = 2_000  # a thread starts in 0.1 ms, the time of about 100 tokens


class RaggedGRU(nn.Module):
    """`nn.GRU(input_size, hidden_size, bidirectional=True)` over a flat array of rows."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.gru = nn.GRU(input_size, hidden_size, bidirectional=True)
        for name, weight in self.gru.named_parameters():
            if name.startswith("weight_hh"):
                for gate in torch.split(weight.data, hidden_size):
                    nn.init.orthogonal_(gate)

    def forward(self, inputs_TE: Tensor, lengths: Tensor) -> Tensor:
        """States of every step, both directions: [T, 2H]. inputs_TE: rows end to end; lengths: int64, on the CPU, all >= 1, sum T."""
        if inputs_TE.is_cuda:
            return self._packed(inputs_TE, _pack(lengths))
        projected_T6 = self.project(inputs_TE)
        if compiled() is None or projected_T6.dtype not in (torch.float32, torch.float64):
            return self._by_steps(projected_T6, _pack(lengths))
        weights = [parameter for kind in ("weight_hh", "bias_hh") for parameter in self.both_ways(kind)]
        return _CompiledRecurrence.apply(projected_T6, *weights, lengths)  # type: ignore[no-any-return, no-untyped-call]

    def project(self, inputs_TE: Tensor) -> Tensor:
        """W_ih x + b_ih of both directions in one product: [T, 6H], gates r, z, n forwards, then backwards."""
        return row_product(inputs_TE, torch.cat(self.both_ways("weight_ih")), torch.cat(self.both_ways("bias_ih")))

    def both_ways(self, kind: str) -> list[Tensor]:
        """The parameters `kind` (as `weight_hh`) of the forward and the backward direction."""
        return [getattr(self.gru, f"{kind}_l0{way}") for way in _WAYS]

    def _packed(self, inputs_TE: Tensor, packing: _Packing) -> Tensor:
        """torch's own packed GRU: cuDNN on a GPU."""
        forward = packing.positions[0].to(inputs_TE.device, non_blocking=True)
        packed = PackedSequence(torch.empty_like(inputs_TE).index_copy(0, forward, inputs_TE), packing.batch_sizes)
        states: PackedSequence = self.gru(packed)[0]
        return states.data.index_select(0, forward)

    def _by_steps(self, projected_T6: Tensor, packing: _Packing) -> Tensor:
        """The recurrence in torch, without a compiler."""
        ways = projected_T6.chunk(2, dim=1)
        projected_2T3 = torch.stack([way.index_select(0, tokens) for way, tokens in zip(ways, packing.tokens, strict=True)])
        weight_2H3 = torch.stack(self.both_ways("weight_hh")).transpose(1, 2)
        bias_213 = torch.stack(self.both_ways("bias_hh")).unsqueeze(1)
        states_2TH = _Recurrence.apply(projected_2T3, weight_2H3, bias_213, packing.batch_sizes.tolist())  # type: ignore[no-untyped-call]
        states = [way.index_select(0, positions) for way, positions in zip(states_2TH, packing.positions, strict=True)]
        return torch.cat(states, dim=1)


def row_product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`functional.linear`: rows [N, K] times weight [M, K], plus bias, where the result of a row does not depend on the other rows.

    For few rows or columns BLAS adds in another order. So a text alone would have another rounding than in company.
    """
    num_rows, num_columns = len(rows), len(weight)
    if num_columns < _FEWEST_COLUMNS:
        weight = nn.functional.pad(weight, (0, 0, 0, _FEWEST_COLUMNS - num_columns))
        bias = None if bias is None else nn.functional.pad(bias, (0, _FEWEST_COLUMNS - num_columns))
    if num_rows < _FEWEST_ROWS:
        rows = nn.functional.pad(rows, (0, 0, 0, _FEWEST_ROWS - num_rows))
    product = nn.functional.linear(rows, weight, bias)
    return product if product.shape == (num_rows, num_columns) else product[:num_rows, :num_columns]


@functools.cache
def compiled() -> ModuleType | None:
    """The compiled kernels, or None where numba does not support this Python or is not installed. Imports numba at the first call."""
    try:
        from han.model import kernels
    except ImportError:
        return None
    return kernels


@dataclass(frozen=True, slots=True, kw_only=True)
class SortedRows:
    """Rows longest first, as the kernels process them."""

    rows: NDArray[np.int64]  # [rows], the number of each sorted row
    starts: NDArray[np.int64]  # [rows], its first token
    lengths: NDArray[np.int64]  # [rows], its tokens

    @classmethod
    def of(cls, lengths: Tensor) -> SortedRows:
        """lengths: int64 [rows], on the CPU."""
        array = lengths.numpy()
        rows = np.argsort(-array, kind="stable")
        return cls(rows=rows, starts=(np.cumsum(array) - array)[rows], lengths=array[rows])


def run_in_threads(kernel: Callable[..., None], num_tokens: int, *before: Any, after: tuple[Any, ...]) -> None:
    """kernel(*before, worker, num_workers, *after) for every worker: as many as torch has threads, one for few tokens."""
    num_workers = torch.get_num_threads() if num_tokens > _TOKENS_FOR_THREADS else 1
    others = [threading.Thread(target=kernel, args=(*before, worker, num_workers, *after)) for worker in range(1, num_workers)]
    for thread in others:
        thread.start()
    kernel(*before, 0, num_workers, *after)
    for thread in others:
        thread.join()


def padded(array: NDArray[Any], width: int) -> NDArray[Any]:
    """`array` with zeros after its last axis, up to a multiple of `width`."""
    return np.ascontiguousarray(np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, -array.shape[-1] % width)]))


def recurrent_weights(weight_hh: list[Tensor], bias_hh: list[Tensor], width: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """W_hh transposed, [2, H, 3Hp], and b_hh, [2, 3Hp], of both directions; each gate is padded to a multiple of `width`."""
    hidden = weight_hh[0].shape[1]
    weights = torch.stack(weight_hh).detach().view(2, 3, hidden, hidden).permute(0, 3, 1, 2).numpy()
    bias = torch.stack(bias_hh).detach().view(2, 3, hidden).numpy()
    return padded(weights, width).reshape(2, hidden, -1), padded(bias, width).reshape(2, -1)


class _CompiledRecurrence(torch.autograd.Function):
    """h_t = (1 - z) n + z h_{t-1}; gates r, z, n as in torch.nn.GRU. The inputs are already projected.

    projected_T6: [T, 6H]; weights [3H, H] and biases [3H] of both directions; lengths: int64 [rows]. Returns [T, 2H].
    """

    @staticmethod
    def forward(
        ctx: Any, projected_T6: Tensor, weight: Tensor, weight_reverse: Tensor, bias: Tensor, bias_reverse: Tensor, lengths: Tensor
    ) -> Tensor:
        kernels = compiled()
        assert kernels is not None  # noqa: S101 - RaggedGRU.forward has checked it
        total, hidden = len(projected_T6), weight.shape[1]
        table = projected_T6.detach().contiguous().numpy().ravel()
        width = kernels.WIDTH[table.dtype]
        weights, biases = recurrent_weights([weight, weight_reverse], [bias, bias_reverse], width)
        states = np.empty((total + 2) * 2 * hidden, table.dtype)
        states[total * 2 * hidden :] = 0
        kept = np.empty((total + 1) * 8 * hidden if any(ctx.needs_input_grad) else 0, table.dtype)
        rows = SortedRows.of(lengths)
        run_in_threads(kernels.forward, total, table, rows.starts, rows.lengths, weights, biases, width, after=(states, kept))
        ctx.save_for_backward(weight, weight_reverse)
        ctx.rows, ctx.states, ctx.kept = rows, states, kept
        return torch.from_numpy(states[: total * 2 * hidden].reshape(total, 2 * hidden))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor | None, ...]:
        kernels = compiled()
        assert kernels is not None  # noqa: S101
        total, hidden = len(grad_states), grad_states.shape[1] // 2
        dtype = ctx.states.dtype
        weights = padded(torch.stack(ctx.saved_tensors).numpy(), kernels.WIDTH[dtype])
        grad_projected, grad_recurrent, before = (np.empty(total * size * hidden, dtype) for size in (6, 2, 2))
        arguments = (grad_states.contiguous().numpy().ravel(), ctx.rows.starts, ctx.rows.lengths, weights, ctx.states, ctx.kept)
        run_in_threads(kernels.backward, total, *arguments, after=(grad_projected, grad_recurrent, before))
        results = [torch.from_numpy(array).view(total, 2, -1) for array in (before, grad_projected, grad_recurrent)]
        of_weights, of_biases = [], []
        for way in range(2):
            inputs, of_gates, of_candidate = (result[:, way] for result in results)
            of_products = (of_gates[:, : 2 * hidden], of_candidate)
            of_weights.append(torch.cat([part.T @ inputs for part in of_products]))
            of_biases.append(torch.cat([part.sum(0) for part in of_products]))
        return (results[1].view(total, -1), *of_weights, *of_biases, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packing:
    """Rows sorted longest first and laid out step by step; the second direction reads every row from its end."""

    batch_sizes: Tensor  # int64 [longest], rows that are at least t + 1 long
    positions: tuple[Tensor, Tensor]  # int64 [T] twice: where a token lies in the packed layout, forwards and backwards
    tokens: tuple[Tensor, Tensor]  # int64 [T] twice: the inverse


def _pack(lengths: Tensor) -> _Packing:
    total, longest = int(lengths.sum()), int(lengths.max())
    rank = torch.empty_like(lengths)
    rank[torch.argsort(lengths, descending=True, stable=True)] = torch.arange(len(lengths))
    at_least = torch.bincount(lengths, minlength=longest + 1).flip(0).cumsum(0).flip(0)
    batch_sizes = at_least[1:]
    offsets = torch.cumsum(batch_sizes, 0) - batch_sizes
    starts = torch.cumsum(lengths, 0) - lengths
    step = torch.arange(total) - torch.repeat_interleave(starts, lengths)
    rank_of_token = torch.repeat_interleave(rank, lengths)
    from_end = torch.repeat_interleave(lengths, lengths) - 1 - step
    positions = (offsets[step] + rank_of_token, offsets[from_end] + rank_of_token)
    inverse = (torch.empty_like(positions[0]), torch.empty_like(positions[1]))
    for inverted, position in zip(inverse, positions, strict=True):
        inverted[position] = torch.arange(total)
    return _Packing(batch_sizes=batch_sizes, positions=positions, tokens=inverse)


class _Recurrence(torch.autograd.Function):
    """h_t = (1 - z) n + z h_{t-1}; gates r, z, n as in torch.nn.GRU. Inputs are already projected and packed.

    projected_2T3: [2, T, 3H], W_ih x + b_ih; weight_2H3: [2, H, 3H]; bias_213: [2, 1, 3H]. Returns [2, T, H], packed.
    """

    @staticmethod
    def forward(ctx: Any, projected_2T3: Tensor, weight_2H3: Tensor, bias_213: Tensor, batch_sizes: list[int]) -> Tensor:
        total, hidden = projected_2T3.shape[1], weight_2H3.shape[1]
        states = projected_2T3.new_empty(2, total, hidden)
        gates = projected_2T3.new_empty(2, total, 2 * hidden)  # r, z
        candidates = torch.empty_like(states)  # n
        recurrent = torch.empty_like(states)  # W_hn h + b_hn
        previous = projected_2T3.new_zeros(2, batch_sizes[0], hidden)
        offset = 0
        for size in batch_sizes:
            now = slice(offset, offset + size)
            before = previous[:, :size]
            products = torch.baddbmm(bias_213, before, weight_2H3)
            inputs = projected_2T3[:, now]
            both = gates[:, now]
            torch.add(inputs[..., : 2 * hidden], products[..., : 2 * hidden], out=both).sigmoid_()
            recurrent[:, now] = products[..., 2 * hidden :]
            candidate = candidates[:, now]
            torch.addcmul(inputs[..., 2 * hidden :], both[..., :hidden], recurrent[:, now], out=candidate).tanh_()
            previous = states[:, now]
            torch.lerp(candidate, before, both[..., hidden:], out=previous)
            offset += size
        ctx.save_for_backward(weight_2H3, states, gates, candidates, recurrent)
        ctx.batch_sizes = batch_sizes
        return states

    @staticmethod
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        weight_2H3, states, gates, candidates, recurrent = ctx.saved_tensors
        batch_sizes: list[int] = ctx.batch_sizes
        hidden = weight_2H3.shape[1]
        weight_23H = weight_2H3.transpose(1, 2).contiguous()
        before = _previous_states(states, batch_sizes)
        reset, update = gates[..., :hidden], gates[..., hidden:]
        # What does not depend on the later steps is computed for all of them at once.
        to_candidate = (1 - update) * (1 - candidates * candidates)
        to_update = (before - candidates) * update * (1 - update)
        to_reset = recurrent * reset * (1 - reset)
        grad_products = torch.empty_like(states).repeat(1, 1, 3)  # of W_hh h + b_hh
        grad_candidates = torch.empty_like(states)
        carried = states.new_zeros(2, 0, hidden)
        offset = states.shape[1]
        for size in reversed(batch_sizes):
            offset -= size
            now = slice(offset, offset + size)
            grad = grad_states[:, now].clone()
            grad[:, : carried.shape[1]] += carried
            of_candidate = grad_candidates[:, now]
            torch.mul(grad, to_candidate[:, now], out=of_candidate)
            of_products = grad_products[:, now]
            torch.mul(of_candidate, to_reset[:, now], out=of_products[..., :hidden])
            torch.mul(grad, to_update[:, now], out=of_products[..., hidden : 2 * hidden])
            torch.mul(of_candidate, reset[:, now], out=of_products[..., 2 * hidden :])
            carried = torch.baddbmm(grad.mul_(update[:, now]), of_products, weight_23H)
        grad_projected = torch.cat([grad_products[..., : 2 * hidden], grad_candidates], dim=2)
        grad_weight = torch.bmm(before.transpose(1, 2), grad_products)
        return grad_projected, grad_weight, grad_products.sum(1, keepdim=True), None


def _previous_states(states: Tensor, batch_sizes: list[int]) -> Tensor:
    """h_{t-1} beside every h_t: each step's rows are the first rows of the step before, zeros at the first step."""
    sizes = torch.tensor(batch_sizes)
    offsets = torch.cumsum(sizes, 0) - sizes
    source = torch.arange(int(sizes[1:].sum())) - torch.repeat_interleave(offsets[1:] - offsets[:-1], sizes[1:]) + int(sizes[0])
    return torch.cat([torch.zeros_like(states[:, : batch_sizes[0]]), states.index_select(1, source)], dim=1)
