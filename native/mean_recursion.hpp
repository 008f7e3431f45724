// The means of a Kalman filter under given gains, and their adjoint.
//
//   p_0 = h0,   p_t = A_t f_{t-1} + a_t        predicted mean
//   e_t = z_t - C_t p_t                        innovation
//   f_t = p_t + K_t e_t                        filtered mean
//
// Adjoint, backwards in time, with dx the gradient that arrives at an output x, g the whole gradient at f_t, u the one at p_t:
//
//   g_t = df_t + A_{t+1}' u_{t+1}              gradient of z_t:  v_t = de_t + K_t' g_t
//   u_t = dp_t + g_t - C_t' v_t                gradient of h0:   u_0,   of a_t:  u_t  (t > 0)
//   gradients of K_t, C_t, A_t, summed over the batch where it shares them:  g_t e_t',  -v_t p_t',  u_t f_{t-1}'
#pragma once

#include <algorithm>
#include <vector>

#include "lanes.hpp"

namespace ldm {

struct MeanRecursion {
    Index batch, time, n, m;
    Field<const double> A, C, K;
    Index a_time, a_batch;
};

template <class Scalar>
struct MeanInputs {
    const Scalar *z, *a, *h0;
};

template <class Scalar>
struct MeanOutputs {
    Scalar *predicted, *filtered, *innovation;
};

template <class Scalar>
struct MeanGradients {
    const Scalar *predicted, *filtered, *innovation;           // the outputs of the forward pass
    const Scalar *at_predicted, *at_filtered, *at_innovation;  // the gradients that arrive there, null where none does
    Field<double> A, C, K;                                     // zeroed by the caller, shaped as the inputs
    double* a;
    Scalar *z, *h0;
};

// y += sign M_t x, or M_t' x, whether the batch shares M_t, of (rows, columns), or each sequence has its own, which then comes
// into the room for one matrix.
template <int W>
LDM_INLINE void apply(Lanes<W>* y, double sign, const Field<const double>& M, bool transposed, Index t, Index first, int count, const Lanes<W>* x,
                      Index rows, Index columns, Lanes<W>* room) {
    const double* data = M.data + first * M.batch + t * M.time;
    const Index row = transposed ? 1 : columns, column = transposed ? columns : 1;
    const Index in = transposed ? rows : columns, out = transposed ? columns : rows;
    if (M.batch == 0) return add_product(y, sign, data, row, column, x, out, in);
    read(room, data, rows * columns, M.batch, count);
    add_own_product(y, sign, room, row, column, x, out, in);
}

// Time runs in chunks: a chunk of each sequence is contiguous, so it is read and written as one run, and the arithmetic works
// on a transposed copy that stays in the cache.
constexpr Index kChunk = 16;

template <int W, class Scalar>
LDM_INLINE void forward_block(const MeanRecursion& q, const MeanInputs<Scalar>& in, const MeanOutputs<Scalar>& out, Index first, int count) {
    const Index n = q.n, m = q.m, states = q.time * n, latents = q.time * m;
    std::vector<Lanes<W>> room(kChunk * (3 * n + m) + n * std::max(n, m));
    Lanes<W>*matrix = room.data() + kChunk * (3 * n + m), *predicted = room.data(), *filtered = predicted + kChunk * n, *offset = filtered + kChunk * n, *innovation = offset + kChunk * n;
    const Lanes<W>* before = nullptr;
    for (Index start = 0; start < q.time; start += kChunk) {
        const Index steps = std::min(kChunk, q.time - start), state = first * states + start * n, latent = first * latents + start * m;
        read(innovation, in.z + latent, steps * m, latents, count);
        read(offset, in.a + first * q.a_batch + start * q.a_time, q.a_time ? steps * n : n, q.a_batch, count);
        for (Index s = 0; s < steps; ++s) {
            const Index t = start + s;
            Lanes<W>*p = predicted + s * n, *f = filtered + s * n, *e = innovation + s * m;
            if (t == 0) {
                read(p, in.h0 + first * n, n, n, count);
            } else {
                copy(p, offset + (q.a_time ? s * n : 0), n);
                apply(p, 1.0, q.A, false, t, first, count, before, n, n, matrix);
            }
            apply(e, -1.0, q.C, false, t, first, count, p, m, n, matrix);
            copy(f, p, n);
            apply(f, 1.0, q.K, false, t, first, count, e, n, m, matrix);
            before = f;
        }
        write(out.predicted + state, predicted, steps * n, states, count);
        write(out.filtered + state, filtered, steps * n, states, count);
        write(out.innovation + latent, innovation, steps * m, latents, count);
    }
}

// What the adjoint knows of a chunk, step by step; `before` is the filtered mean of the step before.
template <int W>
struct Tape {
    std::vector<Lanes<W>> room;
    Lanes<W>*predicted, *before, *innovation, *at_predicted, *at_filtered, *at_innovation;

    Tape(Index n, Index m) : room(kChunk * (4 * n + 2 * m)) {
        predicted = room.data();
        before = predicted + kChunk * n;
        at_predicted = before + kChunk * n;
        at_filtered = at_predicted + kChunk * n;
        innovation = at_filtered + kChunk * n;
        at_innovation = innovation + kChunk * m;
    }
};

template <int W, class Scalar>
LDM_INLINE void read_tape(const MeanRecursion& q, const MeanGradients<Scalar>& d, const Tape<W>& tape, Index first, int count, Index start, Index steps,
                          const Scalar* zeros) {
    const Index n = q.n, m = q.m, states = q.time * n, latents = q.time * m;
    const Index state = first * states + start * n, latent = first * latents + start * m, skip = start == 0 ? n : 0;
    read(tape.predicted, d.predicted + state, steps * n, states, count);
    read(tape.before + skip, d.filtered + state - n + skip, steps * n - skip, states, count);
    read(tape.innovation, d.innovation + latent, steps * m, latents, count);
    clear(tape.at_predicted, steps * n);
    clear(tape.at_filtered, steps * n);
    clear(tape.at_innovation, steps * m);
    if (d.at_predicted) read(tape.at_predicted, d.at_predicted + state, steps * n, states, count, zeros);
    if (d.at_filtered) read(tape.at_filtered, d.at_filtered + state, steps * n, states, count, zeros);
    if (d.at_innovation) read(tape.at_innovation, d.at_innovation + latent, steps * m, latents, count, zeros);
}

// The gradient of a matrix, sign times the sum of x y' of some steps, whether the batch shares it or not.
template <int W>
LDM_INLINE void add_gradient(const Field<double>& M, double sign, const Lanes<W>* x, const Lanes<W>* y, Index rows, Index columns, Index start,
                             Index steps, Index first, int count) {
    if (!M.data) return;
    double* data = M.data + first * M.batch + start * M.time;
    if (M.batch == 0) return add_outers(data, M.time, sign, x, y, rows, columns, steps);
    for (Index s = 0; s < steps; ++s) add_own_outer(data + s * M.time, M.batch, sign, x + s * rows, y + s * columns, rows, columns, count);
}

// Index 0 of the transition leads nowhere and keeps a gradient of zero.
template <int W, class Scalar>
LDM_INLINE void add_sums(const MeanRecursion& q, const MeanGradients<Scalar>& d, const Tape<W>& tape, Index first, int count, Index start, Index steps) {
    const Index n = q.n, m = q.m, skip = start == 0 ? 1 : 0;
    add_gradient(d.K, 1.0, tape.at_filtered, tape.innovation, n, m, start, steps, first, count);
    add_gradient(d.C, -1.0, tape.at_innovation, tape.predicted, m, n, start, steps, first, count);
    add_gradient(d.A, 1.0, tape.at_predicted + skip * n, tape.before + skip * n, n, n, start + skip, steps - skip, first, count);
    for (Index s = skip; s < steps; ++s) {
        add_vector(d.a + first * q.a_batch + (start + s) * q.a_time, tape.at_predicted + s * n, n, q.a_batch, count);
    }
}

template <int W, class Scalar>
LDM_INLINE void backward_block(const MeanRecursion& q, const MeanGradients<Scalar>& d, Index first, int count) {
    const Index n = q.n, m = q.m, latents = q.time * m;
    const std::vector<Scalar> zeros(kChunk * std::max(n, m));
    const Tape<W> tape(n, m);
    std::vector<Lanes<W>> after(n), matrix(n * std::max(n, m));
    for (Index start = (q.time - 1) / kChunk * kChunk; start >= 0; start -= kChunk) {
        const Index steps = std::min(kChunk, q.time - start);
        read_tape(q, d, tape, first, count, start, steps, zeros.data());
        for (Index s = steps - 1; s >= 0; --s) {
            const Index t = start + s;
            Lanes<W>*g = tape.at_filtered + s * n, *u = tape.at_predicted + s * n, *v = tape.at_innovation + s * m;
            if (t + 1 < q.time) apply(g, 1.0, q.A, true, t + 1, first, count, after.data(), n, n, matrix.data());
            apply(v, 1.0, q.K, true, t, first, count, g, n, m, matrix.data());
            add(u, g, n);
            apply(u, -1.0, q.C, true, t, first, count, v, m, n, matrix.data());
            copy(after.data(), u, n);
        }
        write(d.z + first * latents + start * m, tape.at_innovation, steps * m, latents, count);
        add_sums(q, d, tape, first, count, start, steps);
    }
    write(d.h0 + first * n, after.data(), n, n, count);
}

// Sequences run in blocks of kWide, and what is left over in packs; all in packs where matrices of their own would fill the cache.
constexpr int kWide = 16;

LDM_INLINE int pack_size(Index left) { return static_cast<int>(std::min<Index>(left, kPack)); }

LDM_INLINE Index wide_until(const MeanRecursion& q) { return q.A.batch || q.C.batch || q.K.batch ? 0 : q.batch / kWide * kWide; }

template <class Scalar>
LDM_INLINE void forward(const MeanRecursion& q, const MeanInputs<Scalar>& in, const MeanOutputs<Scalar>& out) {
    Index first = 0;
    for (; first < wide_until(q); first += kWide) forward_block<kWide>(q, in, out, first, kWide);
    for (; first < q.batch; first += kPack) forward_block<kPack>(q, in, out, first, pack_size(q.batch - first));
}

template <class Scalar>
LDM_INLINE void backward(const MeanRecursion& q, const MeanGradients<Scalar>& d) {
    Index first = 0;
    for (; first < wide_until(q); first += kWide) backward_block<kWide>(q, d, first, kWide);
    for (; first < q.batch; first += kPack) backward_block<kPack>(q, d, first, pack_size(q.batch - first));
}

}  // namespace ldm
