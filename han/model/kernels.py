"""Compiled kernels of the two recurrent levels on a CPU: numba, with explicit SIMD vectors.

One call processes sorted rows in groups of `ROWS`. The recurrent product, the gates and the attention of a group stay in registers and in
the first cache, so the time is linear in tokens. A row's arithmetic does not depend on its group: a review scores the same in any company.

numba is imported with this module, and only `han.model.gru` imports this module, at the first use of a kernel. Compiled code is cached
beside this file, or in numba's user-wide cache where this folder is read-only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_FEATURES = llvm.get_host_cpu_features()
_REGISTER_BYTES = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx2") else 16
_HAS_RECIPROCAL = bool(_FEATURES.get("avx512f"))
_STEPS_BETWEEN_CHECKS = 8  # of whether an edited state has become the unedited one: the check costs as much as a tenth of a step
# Three gates of 8 rows and the operands fit into 32 registers; AVX2 has 16.
ROWS = 4 if _REGISTER_BYTES == 32 else 8
WIDTH = {np.dtype(np.float32): _REGISTER_BYTES // 4, np.dtype(np.float64): _REGISTER_BYTES // 8}  # elements of one SIMD vector


class _Emitter:
    """Emits LLVM instructions on vectors of one float type."""

    def __init__(self, builder: ir.IRBuilder, element: ir.Type, width: int | None = None) -> None:
        """width: elements of a vector; None for those of one register."""
        self.builder = builder
        self.element = element
        self.is_double = isinstance(element, ir.DoubleType)
        self.width = width or _REGISTER_BYTES // (8 if self.is_double else 4)
        self.vector = ir.VectorType(element, self.width)
        self.suffix = f"v{self.width}f{64 if self.is_double else 32}"
        self.align = 8 if self.is_double else 4
        self.int64 = ir.IntType(64)

    def constant(self, value: float) -> ir.Constant:
        return ir.Constant(self.vector, [value] * self.width)

    def call(self, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
        signature = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, signature, name), arguments)  # type: ignore[no-untyped-call]

    def at(self, base: ir.Value, offset: ir.Value) -> ir.Value:
        return self.builder.gep(base, [offset])

    def load(self, base: ir.Value, offset: ir.Value) -> ir.Value:
        pointer = self.builder.bitcast(self.at(base, offset), self.vector.as_pointer())
        loaded = self.builder.load(pointer)
        loaded.align = self.align
        return loaded

    def store(self, value: ir.Value, base: ir.Value, offset: ir.Value) -> None:
        stored = self.builder.store(value, self.builder.bitcast(self.at(base, offset), self.vector.as_pointer()))
        stored.align = self.align

    def mask(self, first: ir.Value, size: ir.Value) -> ir.Value:
        """Lanes whose element number, from `first` on, is below `size`."""
        lanes = ir.Constant(ir.VectorType(self.int64, self.width), list(range(self.width)))
        left = self.builder.sub(size, first)
        return self.builder.icmp_signed("<", lanes, self._spread(left, ir.VectorType(self.int64, self.width)))

    def load_masked(self, base: ir.Value, offset: ir.Value, mask: ir.Value) -> ir.Value:
        pointer = self.builder.bitcast(self.at(base, offset), self.vector.as_pointer())
        align = ir.Constant(ir.IntType(32), self.align)
        return self.call(f"llvm.masked.load.{self.suffix}.p0", self.vector, pointer, align, mask, self.constant(0.0))

    def store_masked(self, value: ir.Value, base: ir.Value, offset: ir.Value, mask: ir.Value) -> None:
        pointer = self.builder.bitcast(self.at(base, offset), self.vector.as_pointer())
        align = ir.Constant(ir.IntType(32), self.align)
        self.call(f"llvm.masked.store.{self.suffix}.p0", ir.VoidType(), value, pointer, align, mask)

    def to_double(self, value: ir.Value) -> ir.Value:
        return value if self.is_double else self.builder.fpext(value, ir.VectorType(ir.DoubleType(), self.width))

    def spread(self, scalar: ir.Value) -> ir.Value:
        return self._spread(scalar, self.vector)

    def _spread(self, scalar: ir.Value, vector: ir.VectorType) -> ir.Value:
        undefined = ir.Constant(vector, ir.Undefined)
        one = self.builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None)
        return self.builder.shuffle_vector(one, undefined, zeros)

    def fma(self, left: ir.Value, right: ir.Value, added: ir.Value) -> ir.Value:
        return self.call(f"llvm.fma.{self.suffix}", self.vector, left, right, added)

    def sigmoid(self, value: ir.Value) -> ir.Value:
        """1 / (1 + exp(-x)), within 1e-7 in float32 and 1e-15 in float64."""
        return self._reciprocal(self.builder.fadd(self.constant(1.0), self.exp_of_negative(value)))

    def tanh(self, value: ir.Value) -> ir.Value:
        """2 sigmoid(2x) - 1, within 2e-7 in float32."""
        doubled = self.builder.fadd(value, value)
        return self.fma(self.sigmoid(doubled), self.constant(2.0), self.constant(-1.0))

    def exp_of_negative(self, value: ir.Value) -> ir.Value:
        """exp(-x) = 2^k exp(r), |r| <= ln 2 / 2; x is clamped to where float32 or float64 stays finite."""
        limit, degree = (700.0, 13) if self.is_double else (87.0, 6)
        # A NaN passes: minnum and maxnum would hide it.
        low = self.builder.fcmp_ordered("<", value, self.constant(-limit))
        value = self.builder.select(low, self.constant(-limit), value)
        high = self.builder.fcmp_ordered(">", value, self.constant(limit))
        value = self.builder.select(high, self.constant(limit), value)
        bits, mantissa = (64, 52) if self.is_double else (32, 23)
        # Adding 1.5 * 2^mantissa rounds to an integer and leaves that integer in the lowest bits.
        rounder = self.constant(1.5 * 2.0**mantissa)
        rounded = self.fma(value, self.constant(-1 / math.log(2)), rounder)
        power = self.builder.fsub(rounded, rounder)
        # ln 2 in one constant: the error grows with |x|, where a sigmoid is flat. In float64 it stays below 3e-14.
        rest = self.fma(power, self.constant(-math.log(2)), self.builder.fsub(self.constant(-0.0), value))
        total = self.constant(1 / math.factorial(degree))
        for term in range(degree - 1, -1, -1):
            total = self.fma(total, rest, self.constant(1 / math.factorial(term)))
        integers = ir.VectorType(ir.IntType(bits), self.width)
        exponent = self.builder.shl(self.builder.bitcast(rounded, integers), ir.Constant(integers, [mantissa] * self.width))
        return self.builder.bitcast(self.builder.add(self.builder.bitcast(total, integers), exponent), self.vector)

    def _reciprocal(self, value: ir.Value) -> ir.Value:
        if self.is_double or not _HAS_RECIPROCAL:
            return self.builder.fdiv(self.constant(1.0), value)
        # A division costs as much as the polynomial: 14 exact bits and one Newton step instead.
        mask = ir.Constant(ir.IntType(16), 0xFFFF)
        guess = self.call("llvm.x86.avx512.rcp14.ps.512", self.vector, value, self.constant(0.0), mask)
        error = self.fma(self.builder.fsub(self.constant(-0.0), value), guess, self.constant(1.0))
        return self.fma(guess, error, guess)

    def total(self, value: ir.Value) -> ir.Value:
        """The sum of the lanes, pairwise."""
        width = self.width
        while width > 1:
            width //= 2
            halves = [ir.Constant(ir.VectorType(ir.IntType(32), width), list(range(first, first + width))) for first in (0, width)]
            undefined = ir.Constant(value.type, ir.Undefined)
            low, high = (self.builder.shuffle_vector(value, undefined, half) for half in halves)
            value = self.builder.fadd(low, high)
        return self.builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    def product(
        self, rows: list[ir.Value], weights: ir.Value, columns: list[ir.Value], stride: ir.Value, depth: ir.Value, start: list[ir.Value]
    ) -> list[ir.Value]:
        """sum over k of row[k] * weights[k, column], one vector for every row and column; all sums stay in registers.

        rows: pointers; columns: element offsets of vectors in a row of `weights`; start: the first value of each column's sums, or of
        each row's and column's.
        """
        builder = self.builder
        before, loop, after = builder.block, builder.append_basic_block("product"), builder.append_basic_block("product.end")
        builder.branch(loop)
        builder.position_at_end(loop)
        step = builder.phi(self.int64)
        step.add_incoming(ir.Constant(self.int64, 0), before)
        sums = [builder.phi(self.vector) for _ in rows for _ in columns]
        for number, value in enumerate(sums):
            value.add_incoming(start[number % len(start)], before)
        line = builder.mul(step, stride)
        loaded = [self.load(weights, builder.add(line, column)) for column in columns]
        following = []
        for number, row in enumerate(rows):
            factor = self.spread(builder.load(self.at(row, step)))
            following += [self.fma(factor, weight, sums[number * len(columns) + place]) for place, weight in enumerate(loaded)]
        next_step = builder.add(step, ir.Constant(self.int64, 1))
        step.add_incoming(next_step, loop)
        for value, result in zip(sums, following, strict=True):
            value.add_incoming(result, loop)
        builder.cbranch(builder.icmp_signed("<", next_step, depth), loop, after)
        builder.position_at_end(after)
        return following


class _Arguments:
    """Arrays of an intrinsic as pointers to their first element."""

    def __init__(self, context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> None:
        self.parts = [
            context.make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else value
            for kind, value in zip(signature.args, values, strict=True)
        ]
        first = next(kind for kind in signature.args if isinstance(kind, types.Array) and isinstance(kind.dtype, types.Float))
        self.emit = _Emitter(builder, context.get_data_type(first.dtype))

    def offsets(self, array: ir.Value) -> list[ir.Value]:
        """The first ROWS integers of an int64 array."""
        builder = self.emit.builder
        return [builder.load(builder.gep(array, [ir.Constant(ir.IntType(64), row)])) for row in range(ROWS)]


@intrinsic
def _cell(typing: Any, table: Any, x: Any, states: Any, before: Any, after: Any, weights: Any, bias: Any, kept: Any, kept_at: Any,
          first: Any, hidden: Any, stride: Any) -> Any:  # fmt: skip
    """One vector of hidden units, from `first` on, of one step of ROWS rows: product, gates, new states.

    table, states, kept: flat arrays; x, before, after, kept_at: int64 [ROWS], element offsets of the row in them (x of gate r; kept_at
    of r, z, n and W_hn h + b_hn, `hidden` apart; an empty `kept` keeps nothing). weights: [hidden, stride], bias [stride], where
    stride is three gates of whole vectors.
    """
    signature = types.void(table, x, states, before, after, weights, bias, kept, kept_at, first, hidden, stride)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        arguments = _Arguments(context, builder, signature, values)
        emit, int64 = arguments.emit, ir.IntType(64)
        table, x, states, before, after, weights, bias, kept, kept_at, first, hidden, stride = arguments.parts
        gate = builder.sdiv(stride, ir.Constant(int64, 3))
        columns = [builder.add(first, builder.mul(gate, ir.Constant(int64, number))) for number in range(3)]
        rows = [emit.at(states, offset) for offset in arguments.offsets(before)]
        start = [emit.load(bias, column) for column in columns]
        sums = emit.product(rows, weights, columns, stride, hidden, start)
        mask = emit.mask(first, hidden)
        keeps = context.make_array(signature.args[7])(context, builder, values[7]).nitems
        is_kept = builder.icmp_signed(">", keeps, ir.Constant(int64, 0))
        inputs, outputs, places = arguments.offsets(x), arguments.offsets(after), arguments.offsets(kept_at)
        for number in range(ROWS):
            x_r, x_z, x_n = (
                emit.load_masked(
                    table, builder.add(builder.add(inputs[number], first), builder.mul(hidden, ir.Constant(int64, part))), mask
                )
                for part in range(3)
            )
            sum_r, sum_z, recurrent = sums[3 * number : 3 * number + 3]
            reset, update = emit.sigmoid(builder.fadd(x_r, sum_r)), emit.sigmoid(builder.fadd(x_z, sum_z))
            candidate = emit.tanh(emit.fma(reset, recurrent, x_n))
            old = emit.load_masked(rows[number], first, mask)
            new = emit.fma(update, builder.fsub(old, candidate), candidate)
            emit.store_masked(new, states, builder.add(outputs[number], first), mask)
            with builder.if_then(is_kept):
                for part, value in enumerate((reset, update, candidate, recurrent)):
                    place = builder.add(builder.add(places[number], first), builder.mul(hidden, ir.Constant(int64, part)))
                    emit.store_masked(value, kept, place, mask)
        return context.get_dummy_value()

    return signature, generate


def _emit_scores(
    emit: _Emitter,
    rows: list[ir.Value],
    weights: ir.Value,
    begin: Callable[[list[ir.Value]], list[ir.Value]],
    context_vector: ir.Value,
    out: ir.Value,
    depth: ir.Value,
    size: ir.Value,
) -> None:
    """out[row] = c . tanh(W h + begin) of each row. begin: the first values of the sums of some columns, as `product` takes them."""
    builder, int64 = emit.builder, ir.IntType(64)
    totals = [cgutils.alloca_once_value(builder, emit.constant(0.0)) for _ in rows]  # type: ignore[no-untyped-call]
    count = builder.sdiv(size, ir.Constant(int64, emit.width))

    def part(first: ir.Value, num_columns: int) -> None:
        columns = [builder.add(first, ir.Constant(int64, number * emit.width)) for number in range(num_columns)]
        sums = emit.product(rows, weights, columns, size, depth, begin(columns))
        factors = [emit.load(context_vector, column) for column in columns]
        for row, total in enumerate(totals):
            value = builder.load(total)
            for place, factor in enumerate(factors):
                value = emit.fma(emit.tanh(sums[row * num_columns + place]), factor, value)
            builder.store(value, total)

    for total in totals:
        builder.store(emit.constant(0.0), total)
    threes = builder.sdiv(count, ir.Constant(int64, 3))
    with cgutils.for_range(builder, threes) as loop:
        part(builder.mul(loop.index, ir.Constant(int64, 3 * emit.width)), 3)
    with cgutils.for_range(builder, count, start=builder.mul(threes, ir.Constant(int64, 3))) as loop:
        part(builder.mul(loop.index, ir.Constant(int64, emit.width)), 1)
    for row, total in enumerate(totals):
        builder.store(emit.total(builder.load(total)), emit.at(out, ir.Constant(int64, row)))


@intrinsic
def _scores(typing: Any, states: Any, at: Any, weights: Any, bias: Any, context_vector: Any, out: Any, depth: Any, size: Any) -> Any:
    """out[row] = c . tanh(W h + b) of ROWS states; weights: [depth, size], size a multiple of the vector; at: int64 [ROWS], offsets."""
    signature = types.void(states, at, weights, bias, context_vector, out, depth, size)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        arguments = _Arguments(context, builder, signature, values)
        emit = arguments.emit
        states, at, weights, bias, context_vector, out, depth, size = arguments.parts
        rows = [emit.at(states, offset) for offset in arguments.offsets(at)]

        def begin(columns: list[ir.Value]) -> list[ir.Value]:
            return [emit.load(bias, column) for column in columns]

        _emit_scores(emit, rows, weights, begin, context_vector, out, depth, size)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _add_product(typing: Any, inputs: Any, at: Any, weights: Any, out: Any, out_at: Any, depth: Any, size: Any) -> Any:
    """out [size] += inputs [depth] @ weights [depth, size] of ROWS rows; size is a multiple of the vector.

    inputs and out: flat; at, out_at: int64 [ROWS], element offsets. Rows at the same offsets are one row.
    """
    signature = types.void(inputs, at, weights, out, out_at, depth, size)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        arguments = _Arguments(context, builder, signature, values)
        emit, int64 = arguments.emit, ir.IntType(64)
        inputs, at, weights, out, out_at, depth, size = arguments.parts
        rows = [emit.at(inputs, offset) for offset in arguments.offsets(at)]
        outs = arguments.offsets(out_at)

        def part(first: ir.Value, num_columns: int) -> None:
            columns = [builder.add(first, ir.Constant(int64, number * emit.width)) for number in range(num_columns)]
            places = [builder.add(offset, column) for offset in outs for column in columns]
            sums = emit.product(rows, weights, columns, size, depth, [emit.load(out, place) for place in places])
            for value, place in zip(sums, places, strict=True):
                emit.store(value, out, place)

        count = builder.sdiv(size, ir.Constant(int64, emit.width))
        pairs = builder.sdiv(count, ir.Constant(int64, 2))
        with cgutils.for_range(builder, pairs) as loop:
            part(builder.mul(loop.index, ir.Constant(int64, 2 * emit.width)), 2)
        with cgutils.for_range(builder, count, start=builder.mul(pairs, ir.Constant(int64, 2))) as loop:
            part(builder.mul(loop.index, ir.Constant(int64, emit.width)), 1)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _cell_gradients(typing: Any, grad_states: Any, states: Any, kept: Any, carried: Any, products: Any, grad_projected: Any,
                    grad_recurrent: Any, before: Any, at: Any, previous: Any, carried_at: Any,
                    products_at: Any, hidden: Any) -> Any:  # fmt: skip
    """Everything of one row's step back but the product, one SIMD vector of hidden units after another.

    Flat arrays; at: offset of the row's token and direction in arrays of [T, 2, H]; previous: of the step before in `states`;
    carried_at and products_at: offsets of the row in `carried` (the gradient of its state from later steps) and `products`.
    """
    signature = types.void(grad_states, states, kept, carried, products, grad_projected, grad_recurrent, before, at, previous, carried_at,
                           products_at, hidden)  # fmt: skip

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        arguments = _Arguments(context, builder, signature, values)
        emit, int64 = arguments.emit, ir.IntType(64)
        grad_states, states, kept, carried, products, grad_projected, grad_recurrent, before, *numbers = arguments.parts
        at, previous, carried_at, products_at, hidden = numbers
        one, step = emit.constant(1.0), ir.Constant(int64, emit.width)
        add, subtract, multiply = builder.fadd, builder.fsub, builder.fmul
        count = builder.sdiv(builder.add(hidden, ir.Constant(int64, emit.width - 1)), step)
        with cgutils.for_range(builder, count) as loop:
            first = builder.mul(loop.index, step)
            mask = emit.mask(first, hidden)

            def place(base: ir.Value, part: int = 0, times: int = 1) -> ir.Value:
                offset = builder.mul(base, ir.Constant(int64, times))
                return builder.add(builder.add(offset, first), builder.mul(hidden, ir.Constant(int64, part)))

            reset, update, candidate, recurrent = (emit.load_masked(kept, place(at, part, 4), mask) for part in range(4))
            old = emit.load_masked(states, place(previous), mask)
            grad = add(emit.load_masked(grad_states, place(at), mask), emit.load_masked(carried, place(carried_at), mask))
            of_candidate = multiply(multiply(grad, subtract(one, update)), subtract(one, multiply(candidate, candidate)))
            of_recurrent = multiply(of_candidate, reset)
            of_reset = multiply(multiply(of_recurrent, recurrent), subtract(one, reset))
            of_update = multiply(multiply(grad, subtract(old, candidate)), multiply(update, subtract(one, update)))
            emit.store_masked(old, before, place(at), mask)
            emit.store_masked(of_recurrent, grad_recurrent, place(at), mask)
            emit.store_masked(multiply(grad, update), carried, place(carried_at), mask)
            for part, value in enumerate((of_reset, of_update, of_candidate)):
                emit.store_masked(value, grad_projected, place(at, part, 3), mask)
            for part, value in enumerate((of_reset, of_update, of_recurrent)):
                emit.store_masked(value, products, place(products_at, part), mask)
        return context.get_dummy_value()

    return signature, generate


@njit(cache=True, nogil=True, error_model="numpy")
def _run_group(table, ids, starts, lengths, weights, bias, states, scratch, kept, hidden, width, at):  # type: ignore[no-untyped-def]
    """Both directions of one group. Row i of the group has its states at (scratch[i] + step) * 2 * hidden of `states`."""
    num_rows = len(starts)
    stride = weights.shape[2]
    zeros = len(states) - 4 * hidden  # the last two rows of `states` are zeros and what dead rows write
    dead = len(states) - 2 * hidden
    x, before, after, kept_at = at[0], at[1], at[2], at[3]
    for way in range(2):
        for step in range(lengths[0]):
            for row in range(ROWS):
                alive = row < num_rows and step < lengths[row]
                x[row] = way * 3 * hidden
                before[row] = zeros
                after[row] = dead
                kept_at[row] = len(kept) - 4 * hidden
                if alive:
                    token = step if way == 0 else lengths[row] - 1 - step
                    x[row] += ids[starts[row] + token] * 6 * hidden
                    after[row] = (scratch[row] + token) * 2 * hidden + way * hidden
                    kept_at[row] = (scratch[row] + token) * 8 * hidden + way * 4 * hidden
                    if step > 0:
                        before[row] = after[row] + (2 * hidden if way else -2 * hidden)
            for first in range(0, hidden, width):
                _cell(table, x, states, before, after, weights[way], bias[way], kept, kept_at, first, hidden, stride)  # type: ignore[call-arg]


@njit(cache=True, nogil=True, error_model="numpy")
def infer(  # type: ignore[no-untyped-def]
    table, ids, added, added_rows, starts, lengths, weights, bias, attention, attention_bias, context, rows, width, worker, num_workers,
    vectors, shares, all_states, all_scores,
):  # fmt: skip
    """One level of a network without gradients: GRU, attention and weighted sums of every num_workers-th group, from `worker` on.

    table: [N, 6H] flat, W_ih x + b_ih of both directions; ids: [T], the row of a token; added: [T, F] and added_rows: [F, 6H], whose
    product is added to the tokens' rows, or empty; starts, lengths: [rows], sorted longest first;
    weights [2, H, 3Hp], bias [2, 3Hp], attention [2H, Ap], attention_bias [Ap], context [Ap], padded to whole SIMD vectors; rows: the
    number of each sorted row in `vectors`. Fills vectors [rows, 2H] and shares [T], in the order of the tokens; and all_states [T, 2H] and
    all_scores [T], what the softmax reads, unless they are empty.
    """
    hidden = weights.shape[1]
    depth, size = attention.shape
    longest = lengths[worker * ROWS] if worker * ROWS < len(lengths) else 0
    states = np.zeros((ROWS * longest + 2) * depth, table.dtype)
    kept = np.zeros(0, table.dtype)
    scores = np.zeros(ROWS * longest + ROWS, table.dtype)
    at = np.zeros((4, ROWS), np.int64)
    scratch = np.zeros(ROWS, np.int64)
    inputs = np.empty(ROWS * longest * 6 * hidden if added.shape[1] > 0 else 0, table.dtype)
    in_order = np.arange(ROWS * longest)
    for group in range(worker * ROWS, len(lengths), num_workers * ROWS):
        end = min(group + ROWS, len(lengths))
        used = 0
        for row in range(group, end):
            scratch[row - group] = used
            used += lengths[row]
        if added.shape[1] > 0:
            _add_inputs(table, ids, added, added_rows, starts[group:end], lengths[group:end], inputs)
            _run_group(
                inputs, in_order, scratch[: end - group], lengths[group:end], weights, bias, states, scratch, kept, hidden, width, at
            )
        else:
            _run_group(table, ids, starts[group:end], lengths[group:end], weights, bias, states, scratch, kept, hidden, width, at)
        for first in range(0, used, ROWS):
            for row in range(ROWS):
                at[0, row] = min(first + row, used - 1) * depth
            _scores(states, at[0], attention, attention_bias, context, scores[first:], depth, size)  # type: ignore[call-arg]
        for row in range(group, end):
            _weigh(states, scores, scratch[row - group], lengths[row], depth, vectors[rows[row]], shares[starts[row] :])
            if len(all_scores) > 0:
                first, last = scratch[row - group], scratch[row - group] + lengths[row]
                all_scores[starts[row] : starts[row] + lengths[row]] = scores[first:last]
                all_states[starts[row] : starts[row] + lengths[row]].ravel()[:] = states[first * depth : last * depth]


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _add_inputs(table, ids, added, added_rows, starts, lengths, inputs):  # type: ignore[no-untyped-def]
    """The inputs of one group's tokens, row after row: table[id] + added @ added_rows."""
    num_added, size = added_rows.shape
    place = 0
    for row in range(len(starts)):
        for token in range(starts[row], starts[row] + lengths[row]):
            summed = inputs[place : place + size]
            of_word = table[ids[token] * size : (ids[token] + 1) * size]
            for unit in range(size):
                summed[unit] = of_word[unit]
            for number in range(num_added):
                factor = added[token, number]
                if factor != 0:
                    line = added_rows[number]
                    for unit in range(size):
                        summed[unit] += factor * line[unit]
            place += size


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _weigh(states, scores, first, length, depth, vector, shares):  # type: ignore[no-untyped-def]
    """Softmax of one row's scores, in double precision, and the weighted sum of its states."""
    highest = scores[first]
    for token in range(1, length):
        # Written so that a NaN is taken over.
        if not scores[first + token] <= highest:
            highest = scores[first + token]
    total = 0.0
    for token in range(length):
        share = math.exp(scores[first + token] - highest)
        shares[token] = share
        total += share
    vector[:] = 0
    for token in range(length):
        share = shares[token] / total
        shares[token] = share
        row = (first + token) * depth
        weight = shares[token]
        for unit in range(depth):
            vector[unit] += weight * states[row + unit]


@njit(cache=True, nogil=True, error_model="numpy")
def forward(projected, starts, lengths, weights, bias, width, worker, num_workers, states, kept):  # type: ignore[no-untyped-def]
    """States [T + 2, 2H] and gates [T + 1, 2, 4, H] (r, z, n, W_hn h + b_hn), both flat, of every num_workers-th group.

    projected: [T, 6H] flat. The other arguments are those of `infer`. The rows beyond T are scratch: zeros, then what nobody reads.
    """
    hidden = weights.shape[1]
    at = np.zeros((4, ROWS), np.int64)
    ids = np.arange(len(projected) // (6 * hidden))
    for group in range(worker * ROWS, len(lengths), num_workers * ROWS):
        end = min(group + ROWS, len(lengths))
        _run_group(projected, ids, starts[group:end], lengths[group:end], weights, bias, states, starts[group:end], kept, hidden, width, at)


@njit(cache=True, nogil=True, error_model="numpy")
def backward(grad_states, starts, lengths, weights, states, kept, worker, num_workers, grad_projected, grad_recurrent, before):  # type: ignore[no-untyped-def]
    """Gradients of every num_workers-th group; all arrays but `weights` are flat.

    grad_states [T, 2H]; weights [2, 3H, Hp], W_hh of both directions padded to whole SIMD vectors; states and kept as `forward` filled
    them. Fills grad_projected [T, 2, 3H], grad_recurrent [T, 2, H] (of W_hn h + b_hn) and before [T, 2, H] (h of the step before).
    """
    hidden, padded = weights.shape[1] // 3, weights.shape[2]
    carried = np.zeros((ROWS, padded), states.dtype)
    products = np.zeros((ROWS, 3 * hidden), states.dtype)
    flat_carried, flat_products = carried.reshape(-1), products.reshape(-1)
    products_at, carried_at = np.arange(ROWS) * (3 * hidden), np.arange(ROWS) * padded
    zeros = len(states) - 4 * hidden
    for group in range(worker * ROWS, len(lengths), num_workers * ROWS):
        num_rows = min(ROWS, len(lengths) - group)
        for way in range(2):
            carried[:] = 0
            products[:] = 0
            for step in range(lengths[group] - 1, -1, -1):
                for row in range(num_rows):
                    length = lengths[group + row]
                    if step >= length:
                        break
                    token = starts[group + row] + (step if way == 0 else length - 1 - step)
                    at = (2 * token + way) * hidden
                    previous = zeros if step == 0 else at + (2 * hidden if way else -2 * hidden)
                    _cell_gradients(  # type: ignore[call-arg]
                        grad_states, states, kept, flat_carried, flat_products, grad_projected, grad_recurrent, before, at, previous,
                        carried_at[row], products_at[row], hidden,
                    )  # fmt: skip
                if step > 0:
                    _add_product(flat_products, products_at, weights[way], flat_carried, carried_at, 3 * hidden, padded)  # type: ignore[call-arg]


@intrinsic
def _scores_from(typing: Any, states: Any, at: Any, weights: Any, start: Any, start_at: Any, context_vector: Any, out: Any, depth: Any,
                 size: Any) -> Any:  # fmt: skip
    """out[row] = c . tanh(W h + start) of ROWS states, each with its own start [size]; the other arguments are those of `_scores`."""
    signature = types.void(states, at, weights, start, start_at, context_vector, out, depth, size)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        arguments = _Arguments(context, builder, signature, values)
        emit = arguments.emit
        states, at, weights, start, start_at, context_vector, out, depth, size = arguments.parts
        rows = [emit.at(states, offset) for offset in arguments.offsets(at)]
        starts = [emit.at(start, offset) for offset in arguments.offsets(start_at)]

        def begin(columns: list[ir.Value]) -> list[ir.Value]:
            return [emit.load(row, column) for row in starts for column in columns]

        _emit_scores(emit, rows, weights, begin, context_vector, out, depth, size)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _weights(typing: Any, scores: Any, shifts: Any, out: Any) -> Any:
    """out[row] = exp(scores[row] - shifts[row]) of ROWS rows; shifts and out: float64."""
    signature = types.void(scores, shifts, out)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        arguments = _Arguments(context, builder, signature, values)
        scores, shifts, out = arguments.parts
        doubles = _Emitter(builder, ir.DoubleType())
        singles = _Emitter(builder, arguments.emit.element, doubles.width)
        for first in range(0, ROWS, doubles.width):
            at = ir.Constant(ir.IntType(64), first)
            negative = builder.fsub(doubles.load(shifts, at), singles.to_double(singles.load(scores, at)))
            doubles.store(doubles.exp_of_negative(negative), out, at)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _add_weighed(typing: Any, states: Any, at: Any, weights: Any, out: Any, out_at: Any, hidden: Any) -> Any:
    """out[row] += weights[row] * state[row] of ROWS states [hidden], in float64.

    states and out: flat; at, out_at: int64 [ROWS], element offsets. A row of `out` has whole vectors of the states' type.
    """
    signature = types.void(states, at, weights, out, out_at, hidden)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        arguments = _Arguments(context, builder, signature, values)
        emit, int64 = arguments.emit, ir.IntType(64)
        doubles = _Emitter(builder, ir.DoubleType(), emit.width)
        states, at, weights, out, out_at, hidden = arguments.parts
        rows, places = arguments.offsets(at), arguments.offsets(out_at)
        factors = [doubles.spread(builder.load(emit.at(weights, ir.Constant(int64, row)))) for row in range(ROWS)]
        step = ir.Constant(int64, emit.width)
        count = builder.sdiv(builder.add(hidden, ir.Constant(int64, emit.width - 1)), step)
        with cgutils.for_range(builder, count) as loop:
            first = builder.mul(loop.index, step)
            mask = emit.mask(first, hidden)
            for row, place, factor in zip(rows, places, factors, strict=True):
                state = emit.to_double(emit.load_masked(states, builder.add(row, first), mask))
                total = builder.add(place, first)
                doubles.store(doubles.fma(factor, state, doubles.load(out, total)), out, total)
        return context.get_dummy_value()

    return signature, generate


@njit(cache=True, nogil=True, error_model="numpy")
def run_edits(  # type: ignore[no-untyped-def]
    table, states, scored, shifts, running, weights, bias, attention, context, width, firsts, lasts, places, begin, reach, tolerance,
    worker, num_workers, sums,
):  # fmt: skip
    """The sums of rows of which one element each is left out: the elements that follow it, in both directions, have new states.

    table: [T * 6H], W_ih x + b_ih of both directions; states: [T, 2H], of the unedited rows; scored: [2, T * Ap], the attention of
    an element before its tanh without the part of this direction's state; shifts: float64 [T]; running: float64 [T + 1, 2H + 1], sums
    of the unedited elements; weights, bias and context: as for `infer`; attention: [2, H, Ap]; firsts and lasts: int64 [T], of the
    element's row; places: int64 [2, N], the elements of each direction; begin: [2, N, H], the state that each direction leaves at the
    place, or [2, 0, H] if the state before it stays. A run ends after `reach` elements, or once no unit of its state differs by more
    than `tolerance` from the unedited one: the other elements are then the unedited ones. A group of ROWS edits runs at once; an edit
    that ends is replaced by the next one. Adds to sums, float64 [N, 2H + 1].
    """
    hidden, stride = weights.shape[1], weights.shape[2]
    size = attention.shape[2]
    first_edit = places.shape[1] * worker // num_workers
    end_edit = places.shape[1] * (worker + 1) // num_workers
    # The state of each row of the group before and after the step; the two change places after each step.
    buffer = np.zeros(2 * ROWS * hidden, table.dtype)
    scores = np.zeros(ROWS, table.dtype)
    x, before, after, kept_at, start_at, own_at, other, other_at = np.zeros((8, ROWS), np.int64)
    edits, steps = np.zeros((2, ROWS), np.int64)
    kept = np.zeros(0, table.dtype)
    # Sums of the edit in each row: its states in both directions, each in whole vectors, and its weights.
    totals = np.zeros((ROWS, 2, (hidden + width - 1) // width * width))
    row_shifts, row_weights, total_weights = np.zeros((3, ROWS))
    flat_states, flat_totals = states.reshape(-1), totals.reshape(-1)
    for way in range(2):
        sign = 1 - 2 * way
        own = way * hidden
        ends = lasts if way == 0 else firsts
        following = first_edit
        num_alive = 0
        for row in range(ROWS):
            edits[row] = -1
            before[row] = 2 * row * hidden
            after[row] = before[row] + hidden
            own_at[row] = (2 * row + way) * totals.shape[2]
            other_at[row] = (2 * row + 1 - way) * totals.shape[2]
        while True:
            for row in range(ROWS):
                while edits[row] < 0 and following < end_edit:
                    place = places[way, following]
                    if place != ends[place] and reach > 0:
                        edits[row], steps[row] = following, 0
                        totals[row], total_weights[row] = 0, 0
                        _begin(buffer[before[row] : before[row] + hidden], states, begin, following, place, firsts, lasts, way)
                        num_alive += 1
                    elif place != ends[place]:
                        sums[following] += _rest(running, place, ends[place], way)
                    following += 1
                if edits[row] >= 0:
                    steps[row] += 1
                    place = places[way, edits[row]] + sign * steps[row]
                    x[row] = place * 6 * hidden + way * 3 * hidden
                    start_at[row] = place * size
                    other[row] = place * 2 * hidden + (1 - way) * hidden
                    row_shifts[row] = shifts[place]
            if num_alive == 0:
                break
            for first in range(0, hidden, width):
                _cell(table, x, buffer, before, after, weights[way], bias[way], kept, kept_at, first, hidden, stride)  # type: ignore[call-arg]
            _scores_from(buffer, after, attention[way], scored[way], start_at, context, scores, hidden, size)  # type: ignore[call-arg]
            _weights(scores, row_shifts, row_weights)
            _add_weighed(buffer, after, row_weights, flat_totals, own_at, hidden)
            _add_weighed(flat_states, other, row_weights, flat_totals, other_at, hidden)
            for row in range(ROWS):
                edit = edits[row]
                if edit >= 0:
                    place = places[way, edit] + sign * steps[row]
                    total_weights[row] += row_weights[row]
                    is_last = place == ends[place] or steps[row] == reach
                    if not is_last and steps[row] % _STEPS_BETWEEN_CHECKS == 0:
                        unedited = states[place, own : own + hidden]
                        is_last = _largest_change(buffer[after[row] : after[row] + hidden], unedited) <= tolerance
                    if is_last:
                        _finish(totals[row], total_weights[row], running, place, ends[place], way, sums[edit])
                        edits[row] = -1
                        num_alive -= 1
                before[row], after[row] = after[row], before[row]


@njit(cache=True, nogil=True, error_model="numpy")
def score_others(states, attention, bias, scored):  # type: ignore[no-untyped-def]
    """Fills `scored` [2, T * Ap] of `run_edits` from the states [T, 2H]; attention: [2, H, Ap], bias: [Ap]."""
    num_states = len(states)
    hidden, size = attention.shape[1:]
    at, out_at = np.zeros((2, ROWS), np.int64)
    flat_states = states.reshape(-1)
    for way in range(2):
        for first in range(0, num_states, ROWS):
            for row in range(ROWS):
                place = min(first + row, num_states - 1)
                at[row] = place * 2 * hidden + (1 - way) * hidden
                out_at[row] = place * size
                scored[way, out_at[row] : out_at[row] + size] = bias
            _add_product(flat_states, at, attention[1 - way], scored[way], out_at, hidden, size)  # type: ignore[call-arg]


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def sum_rows(states, scores, firsts, lasts, shifts, running):  # type: ignore[no-untyped-def]
    """Fills `shifts` [T] and `running` [T + 1, 2H + 1] of `run_edits`, from the states [T, 2H] and the scores [T] of unedited rows."""
    hidden = states.shape[1]
    for place in range(len(scores)):
        first = firsts[place]
        shifts[place] = scores[place : lasts[place] + 1].max() if place == first else shifts[first]
        share = math.exp(scores[place] - shifts[place])
        for unit in range(hidden):
            running[place + 1, unit] = running[place, unit] + share * states[place, unit]
        running[place + 1, hidden] = running[place, hidden] + share


@njit(cache=True, nogil=True, error_model="numpy")
def _begin(state, states, begin, edit, place, firsts, lasts, way):  # type: ignore[no-untyped-def]
    """Fills `state` [H] with the state that this direction leaves at the edited place: 0 at the end of a row."""
    hidden = len(state)
    if begin.shape[1]:
        state[:] = begin[way, edit]
    elif place == (firsts[place] if way == 0 else lasts[place]):
        state[:] = 0
    else:
        state[:] = states[place + 2 * way - 1, way * hidden : (way + 1) * hidden]


@njit(cache=True, nogil=True, error_model="numpy")
def _rest(running, place, end, way):  # type: ignore[no-untyped-def]
    """The sum of the unedited elements beyond `place` in this direction, up to the end of the row."""
    return running[end + 1] - running[place + 1] if way == 0 else running[place] - running[end]


@njit(cache=True, nogil=True, error_model="numpy")
def _finish(totals, total_weight, running, place, end, way, summed):  # type: ignore[no-untyped-def]
    """Adds to `summed` [2H + 1] the edited elements up to `place`, and the unedited ones beyond it."""
    hidden = len(summed) // 2
    for unit in range(hidden):
        summed[unit] += totals[0, unit]
        summed[hidden + unit] += totals[1, unit]
    summed[2 * hidden] += total_weight
    if place != end:
        summed += _rest(running, place, end, way)


@njit(cache=True, nogil=True, error_model="numpy")
def _largest_change(state, unedited):  # type: ignore[no-untyped-def]
    largest = abs(state[0] - unedited[0])
    for unit in range(1, len(state)):
        largest = max(largest, abs(state[unit] - unedited[unit]))
    return largest


@njit(cache=True, nogil=True, error_model="numpy")
def _mix(value):  # type: ignore[no-untyped-def]
    """SplitMix64, as `ngrams._mix`."""
    value += np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@njit(cache=True, nogil=True, error_model="numpy")
def ngram_inputs(token_ids, sentence_lengths, hashes, bucket_starts, weights, left_out, inputs):  # type: ignore[no-untyped-def]
    """Fills inputs float32 [T, F] with the weights of the n-grams that end at each token, but of the first `left_out` orders (see
    `ngrams.NgramTable`)."""
    num_columns = weights.shape[1]
    orders = left_out + inputs.shape[1] // num_columns
    inputs[:] = 0
    first = 0
    for length in sentence_lengths:
        for last in range(first, first + length):
            mixed = np.uint64(0)
            for order in range(min(orders, last - first + 1)):
                word = token_ids[last - order]
                if word == 0:
                    break
                mixed = _mix(mixed + np.uint64(word))
                if order < left_out:
                    continue
                wanted = np.uint32(max(mixed >> np.uint64(32), np.uint64(1)))
                bucket = wanted >> np.uint32(16)
                for place in range(bucket_starts[bucket], bucket_starts[bucket + 1]):
                    if hashes[place] >= wanted:
                        if hashes[place] == wanted:
                            for column in range(num_columns):
                                inputs[last, (order - left_out) * num_columns + column] = weights[place, column]
                        break
        first += length


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def adam_rows(rows, gradient, weight, mean, square, first, second, epsilon, rate):  # type: ignore[no-untyped-def]
    """One step of `SparseAdam` for some rows of a table, in one pass over them.

    rows: int64 [N], each once; gradient: [N, E]; weight and the running means of the gradient and of its square: [V, E], changed in place;
    first, second: the new gradient's and its square's share of the means; rate: the learning rate, corrected for the means' start at 0.
    """
    for number in range(len(rows)):
        row = rows[number]
        for column in range(gradient.shape[1]):
            slope = gradient[number, column]
            mean[row, column] += first * (slope - mean[row, column])
            square[row, column] += second * (slope * slope - square[row, column])
            weight[row, column] -= rate * mean[row, column] / (np.sqrt(square[row, column]) + epsilon)
