// The means of a Kalman filter whose gains are shared by the batch, and their adjoint.
//
//   p_0 = h0,   p_t = A_t f_{t-1} + a_t        predicted mean
//   e_t = z_t - C_t p_t                        innovation
//   f_t = p_t + K_t e_t                        filtered mean
//
// Adjoint, backwards in time, with dx the gradient that arrives at an output x, g the whole gradient at f_t, u the one at p_t:
//
//   g_t = df_t + A_{t+1}' u_{t+1}              gradient of z_t:  v_t = de_t + K_t' g_t
//   u_t = dp_t + g_t - C_t' v_t                gradient of h0:   u_0,   of a_t:  u_t  (t > 0)
//   gradients of K_t, C_t, A_t, summed over the batch:  g_t e_t',  -v_t p_t',  u_t f_{t-1}'
#pragma once

#include <algorithm>
#include <vector>

#include "lanes.hpp"

namespace ldm {

// Everything is contiguous. A time step of 0 means constant in time, a batch step of 0 shared by the batch.
struct MeanRecursion {
    Index batch, time, n, m;
    const double *A, *C, *K;
    Index A_time, C_time, a_time, a_batch;
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
    double *A, *C, *K, *a;                                     // zeroed by the caller, shaped as the inputs
    Scalar *z, *h0;
};

// Time runs in chunks: a chunk of each sequence is contiguous, so it is read and written as one run, and the arithmetic works
// on a transposed copy that stays in the cache.
constexpr Index kChunk = 16;

template <int W, class Scalar>
LDM_INLINE void forward_block(const MeanRecursion& q, const MeanInputs<Scalar>& in, const MeanOutputs<Scalar>& out, Index first, int count) {
    const Index n = q.n, m = q.m, states = q.time * n, latents = q.time * m;
    std::vector<Lanes<W>> room(kChunk * (3 * n + m));
    Lanes<W>*predicted = room.data(), *filtered = predicted + kChunk * n, *offset = filtered + kChunk * n, *innovation = offset + kChunk * n;
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
                add_product(p, 1.0, q.A + t * q.A_time, n, 1, before, n, n);
            }
            add_product(e, -1.0, q.C + t * q.C_time, n, 1, p, m, n);
            copy(f, p, n);
            add_product(f, 1.0, q.K + t * n * m, m, 1, e, n, m);
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

// The gradients that are sums over the batch. Index 0 of the transition leads nowhere and keeps a gradient of zero.
template <int W, class Scalar>
LDM_INLINE void add_sums(const MeanRecursion& q, const MeanGradients<Scalar>& d, const Tape<W>& tape, Index first, int count, Index start, Index steps) {
    const Index n = q.n, m = q.m, skip = start == 0 ? 1 : 0;
    add_outers(d.K + start * n * m, n * m, 1.0, tape.at_filtered, tape.innovation, n, m, steps);
    add_outers(d.C + start * q.C_time, q.C_time, -1.0, tape.at_innovation, tape.predicted, m, n, steps);
    add_outers(d.A + (start + skip) * q.A_time, q.A_time, 1.0, tape.at_predicted + skip * n, tape.before + skip * n, n, n, steps - skip);
    for (Index s = skip; s < steps; ++s) {
        add_vector(d.a + first * q.a_batch + (start + s) * q.a_time, tape.at_predicted + s * n, n, q.a_batch, count);
    }
}

template <int W, class Scalar>
LDM_INLINE void backward_block(const MeanRecursion& q, const MeanGradients<Scalar>& d, Index first, int count) {
    const Index n = q.n, m = q.m, latents = q.time * m;
    const std::vector<Scalar> zeros(kChunk * std::max(n, m));
    const Tape<W> tape(n, m);
    std::vector<Lanes<W>> after(n);
    for (Index start = (q.time - 1) / kChunk * kChunk; start >= 0; start -= kChunk) {
        const Index steps = std::min(kChunk, q.time - start);
        read_tape(q, d, tape, first, count, start, steps, zeros.data());
        for (Index s = steps - 1; s >= 0; --s) {
            const Index t = start + s;
            Lanes<W>*g = tape.at_filtered + s * n, *u = tape.at_predicted + s * n, *v = tape.at_innovation + s * m;
            if (t + 1 < q.time) add_product(g, 1.0, q.A + (t + 1) * q.A_time, 1, n, after.data(), n, n);
            add_product(v, 1.0, q.K + t * n * m, 1, m, g, m, n);
            add(u, g, n);
            add_product(u, -1.0, q.C + t * q.C_time, 1, n, v, n, m);
            copy(after.data(), u, n);
        }
        write(d.z + first * latents + start * m, tape.at_innovation, steps * m, latents, count);
        add_sums(q, d, tape, first, count, start, steps);
    }
    write(d.h0 + first * n, after.data(), n, n, count);
}

// Sequences run in blocks of kWide, and what is left over in packs.
constexpr int kWide = 16;

LDM_INLINE int pack_size(Index left) { return static_cast<int>(std::min<Index>(left, kPack)); }

template <class Scalar>
LDM_INLINE void forward(const MeanRecursion& q, const MeanInputs<Scalar>& in, const MeanOutputs<Scalar>& out) {
    Index first = 0;
    for (; q.batch - first >= kWide; first += kWide) forward_block<kWide>(q, in, out, first, kWide);
    for (; first < q.batch; first += kPack) forward_block<kPack>(q, in, out, first, pack_size(q.batch - first));
}

template <class Scalar>
LDM_INLINE void backward(const MeanRecursion& q, const MeanGradients<Scalar>& d) {
    Index first = 0;
    for (; q.batch - first >= kWide; first += kWide) backward_block<kWide>(q, d, first, kWide);
    for (; first < q.batch; first += kPack) backward_block<kPack>(q, d, first, pack_size(q.batch - first));
}

}  // namespace ldm
