"""A bidirectional GRU over rows of any lengths, without padding.

The weights are `torch.nn.GRU`'s. On a GPU its cuDNN kernel runs over the packed rows. On a CPU torch's own packed GRU has a backward pass
whose cost grows with the square of the batch (each time step adds a gradient as large as the whole input), so here the recurrence is an
autograd Function over the same packed layout: both directions in one batched product, the gates kept for the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


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
        packing = _pack(lengths)
        if inputs_TE.is_cuda:
            return self._packed(inputs_TE, packing)
        return self._cpu(inputs_TE, packing)

    def _packed(self, inputs_TE: Tensor, packing: _Packing) -> Tensor:
        """torch's own packed GRU: cuDNN on a GPU."""
        forward = packing.positions[0].to(inputs_TE.device, non_blocking=True)
        packed = PackedSequence(torch.empty_like(inputs_TE).index_copy(0, forward, inputs_TE), packing.batch_sizes)
        states: PackedSequence = self.gru(packed)[0]
        return states.data.index_select(0, forward)

    def _cpu(self, inputs_TE: Tensor, packing: _Packing) -> Tensor:
        parts: dict[str, list[Tensor]] = {
            kind: [getattr(self.gru, f"{kind}_l0{way}") for way in ("", "_reverse")]
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
        projected = [
            torch.addmm(bias, inputs_TE, weight.T).index_select(0, tokens)
            for bias, weight, tokens in zip(parts["bias_ih"], parts["weight_ih"], packing.tokens, strict=True)
        ]
        weight_2H3 = torch.stack(parts["weight_hh"]).transpose(1, 2)
        bias_213 = torch.stack(parts["bias_hh"]).unsqueeze(1)
        states_2TH = _Recurrence.apply(torch.stack(projected), weight_2H3, bias_213, packing.batch_sizes.tolist())  # type: ignore[no-untyped-call]
        states = [way.index_select(0, positions) for way, positions in zip(states_2TH, packing.positions, strict=True)]
        return torch.cat(states, dim=1)


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
