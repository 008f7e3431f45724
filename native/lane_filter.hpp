// The filter where covariances differ between sequences: each sequence in a lane, state and covariance in the cache from the first step
// to the last. The adjoint computes predictions, factors and gains anew from the filtered moments: it needs no memory of its own.
#pragma once

#include "filter_step.hpp"

namespace ldm {
namespace LDM_ISA {

// The sequences that are worked on together: `first` and the next `count`.
struct Span {
    Index first;
    int count;
};

template <class V, class T>
LDM_INLINE void fetch(V* x, const Field<T>& field, Index size, Index t, const Span& who) {
    read(x, field.data + who.first * field.batch + t * field.time, size, field.batch, who.count);
}

// The matrices of step t, read again only where they change.
template <class V, class Scalar>
LDM_INLINE void fetch_model(Workspace<V>& x, const Problem<Scalar>& q, Index t, bool first_time, const Span& who) {
    const Index n = q.n, m = q.m;
    if (first_time || q.A.time) fetch(x.model.A, q.A, n * n, t, who);
    if (first_time || q.a.time) fetch(x.model.a, q.a, n, t, who);
    if (first_time || q.C.time) fetch(x.model.C, q.C, m * n, t, who);
    if (q.c.data && (first_time || q.c.time)) fetch(x.model.c, q.c, m, t, who);
    if (first_time || q.Q.time) {
        fetch(x.model.Q, q.Q, n * n, t, who);
        symmetrise(x.model.Q, n);
    }
}

template <class V>
LDM_INLINE void fetch_mask(V* seen, const Mask& mask, Index t, Index m, const Span& who) {
    for (Index i = 0; i < m; ++i) {
        for (int l = 0; l < width<V>; ++l) {
            const Index series = who.first + (l < who.count ? l : who.count - 1);
            set_lane(seen[i], l, mask.data[series * mask.batch + t * mask.time + i * mask.channel] ? 1.0 : 0.0);
        }
    }
}

// Several steps of what is read and written, so that each sequence's memory is touched in runs.
template <class V>
struct Chunk {
    Index steps;
    Room<V> room;
    V *z, *R, *mean, *cov, *density, *at_mean, *at_cov, *at_density;

    static Index length(Index n) { return n > 16 ? 1 : smaller(8, 256 / (n * n)); }

    Chunk(Index n, Index m, Index time) : steps(smaller(length(n), time)), room(steps * (m + m * m + 2 * (n + n * n + 1)), false) {
        for (V** x : {&z}) *x = room.take(steps * m);
        for (V** x : {&R}) *x = room.take(steps * m * m);
        for (V** x : {&mean, &at_mean}) *x = room.take(steps * n);
        for (V** x : {&cov, &at_cov}) *x = room.take(steps * n * n);
        for (V** x : {&density, &at_density}) *x = room.take(steps);
    }
};

// Asks for numbers that will be wanted soon: `length` of each sequence, where their memory is too far apart for the processor to foresee.
template <int write, class T>
LDM_INLINE void foresee(const T* data, Index length, Index stride, int count) {
#if defined(__GNUC__) || defined(__clang__)
    for (int l = 0; l < count; ++l) {
        for (Index i = 0; i < length; i += 64 / static_cast<Index>(sizeof(T))) __builtin_prefetch(data + l * stride + i, write);
    }
#endif
}

// R of the chunk's step s, or the one that all steps share.
template <class V, class Scalar>
LDM_INLINE void take_noise(Workspace<V>& x, const Chunk<V>& chunk, const Problem<Scalar>& q, Index s) {
    x.model.R = chunk.R + (q.R.time ? s * q.m * q.m : 0);
    symmetrise(x.model.R, q.m);
}

template <class V, class Scalar>
LDM_INLINE void read_measurements(const Chunk<V>& chunk, const Problem<Scalar>& q, Index start, Index steps, const Span& who) {
    read(chunk.z, q.z.data + who.first * q.z.batch + start * q.z.time, steps * q.m, q.z.batch, who.count);
    if (q.R.time || start == 0) fetch(chunk.R, q.R, (q.R.time ? steps : 1) * q.m * q.m, start, who);
}

// The prediction of step t: p and P^-.
template <bool known, class V, class Scalar>
LDM_INLINE void predict(Workspace<V>& x, const Problem<Scalar>& q, Index n, Index t, const Span& who) {
    if (t == 0) {
        fetch(q.from_belief ? x.h : x.p, q.h0, n, 0, who);
        fetch(q.from_belief ? x.P : x.predicted, q.P0, n * n, 0, who);
        symmetrise(q.from_belief ? x.P : x.predicted, n);
        if (!q.from_belief) return;
    }
    product_from<Sum::plus, Form::ab, false, known>(x.p, x.model.a, x.model.A, x.h, n, n, 1);
    predict_cov<known>(x, n);
}

// S = L L', X, the innovation e and w = L^-1 e.
template <bool known, class V>
LDM_INLINE V innovate(Workspace<V>& x, const V* z, Index n, Index m, bool masked) {
    for (Index i = 0; i < m; ++i) x.e[i] = z[i] - x.model.c[i];
    product<Sum::minus, Form::ab, false, known>(x.e, x.model.C, x.p, m, n, 1);
    if (masked) {
        // Selected, not multiplied: what stands where nothing was observed may be NaN.
        for (Index i = 0; i < m; ++i) x.e[i] = x.seen[i] != 0.0 ? x.e[i] : V{};
    }
    const V worst = factorise<known>(x, n, m, masked);
    copy(x.w, x.e, m);
    solve_lower(x.w, x.L, x.inverse, m, 1);
    return worst;
}

template <int N, int M, class V, class Scalar>
LDM_INLINE void forward_span(const Problem<Scalar>& q, const Moments<Scalar>& out, const Span& who, Failure& failure) {
    constexpr bool known = N > 0;
    constexpr double kLog2Pi = 1.8378770664093454836;
    const Index n = known ? N : q.n, m = known ? M : q.m, T = q.time;
    const bool masked = q.mask.data;
    const double eps = sizeof(Scalar) == sizeof(float) ? 1.1920928955078125e-07 : 0.0, lift = 1.0 + n * eps;
    Workspace<V> x(n, m, false);
    V* const last = x.P;
    const Chunk<V> chunk(n, m, T);
    const auto row = [&](Scalar* data, Index t, Index size) { return data + (who.first * T + t) * size; };
    for (Index start = 0; start < T; start += chunk.steps) {
        const Index steps = smaller(chunk.steps, T - start);
        read_measurements(chunk, q, start, steps, who);
        for (Index s = 0; s < steps; ++s) {
            const Index t = start + s;
            fetch_model(x, q, t, t == 0, who);
            take_noise(x, chunk, q, s);
            if (q.R.time && q.R.batch && t + chunk.steps < T) foresee<0>(q.R.data + who.first * q.R.batch + (t + chunk.steps) * q.R.time, m * m, q.R.batch, who.count);
            foresee<1>(row(out.cov, t, n * n), n * n, T * n * n, who.count);
            if (masked) fetch_mask(x.seen, q.mask, t, m, who);
            predict<known>(x, q, n, t, who);
            if (out.predicted_mean) write(row(out.predicted_mean, t, n), x.p, n, T * n, who.count);
            if (out.predicted_cov) {
                copy(x.square, x.predicted, n * n);
                for (Index i = 0; i < n; ++i) x.square[i * n + i] *= lift;
                write(row(out.predicted_cov, t, n * n), x.square, n * n, T * n * n, who.count);
            }
            const V worst = innovate<known>(x, chunk.z + s * m, n, m, masked);
            if (!all_less(V{}, worst)) {
                for (int l = 0; l < who.count; ++l) {
                    if (!(lane(worst, l) > 0.0)) {
                        if (failure.step < 0 || t < failure.step) failure = {t, who.first + l};
                        return;
                    }
                }
            }
            product_from<Sum::plus, Form::atb, false, known>(x.h, x.p, x.X, x.w, n, m, 1);
            x.P = chunk.cov + s * n * n;  // that of the step before has done its part
            correct_cov<known>(x, n, m);
            V square{}, count = spread<V>(static_cast<double>(m));
            for (Index i = 0; i < m; ++i) square += x.w[i] * x.w[i];
            if (masked) {
                count = V{};
                for (Index i = 0; i < m; ++i) count += x.seen[i];
            }
            chunk.density[s] = -0.5 * (square + kLog2Pi * count) - log_diagonal(x.L, m);
            if (out.distance) write(row(out.distance, t, 1), &square, 1, T, who.count);
            copy(chunk.mean + s * n, x.h, n);
        }
        write(row(out.mean, start, n), chunk.mean, steps * n, T * n, who.count);
        if (eps > 0.0) {
            copy(last, x.P, n * n);
            x.P = last;
            for (Index k = 0; k < steps * n; ++k) chunk.cov[(k / n) * n * n + (k % n) * (n + 1)] *= lift;
        }
        write(row(out.cov, start, n * n), chunk.cov, steps * n * n, T * n * n, who.count);
        write(row(out.log_likelihood, start, 1), chunk.density, steps, T, who.count);
    }
}

// Where a gradient is summed: at every step, or at the end where all steps share the matrix; one that a sequence has to itself is written once.
template <class V>
LDM_INLINE void flush(const Field<double>& gradient, V* sum, Index size, Index t, bool last, const Span& who) {
    if (!gradient.data || !(gradient.time || last)) return;
    double* data = gradient.data + who.first * gradient.batch + t * gradient.time;
    if (gradient.batch == 0) {
        for (Index i = 0; i < size; ++i) {
            for (int l = 0; l < who.count; ++l) data[i] += lane(sum[i], l);
        }
    } else {
        write(data, sum, size, gradient.batch, who.count);
    }
    fill(sum, size);
}

// What arrives at an output of some steps.
template <class V, class Scalar>
LDM_INLINE void read_arriving(V* x, const Scalar* data, Index start, Index steps, Index size, Index T, const Span& who) {
    if (!data) return;
    read(x, data + (who.first * T + start) * size, steps * size, T * size, who.count);
}

// Filtered moments of the steps before those of a chunk: slot s holds step start + s - 1.
template <class V, class Scalar>
LDM_INLINE void read_before(const Chunk<V>& chunk, const Moments<const Scalar>& out, Index start, Index steps, Index n, Index T, const Span& who) {
    const Index skip = start == 0 ? 1 : 0, row = who.first * T + start - 1 + skip;
    if (steps == skip) return;
    read(chunk.mean + skip * n, out.mean + row * n, (steps - skip) * n, T * n, who.count);
    read(chunk.cov + skip * n * n, out.cov + row * n * n, (steps - skip) * n * n, T * n * n, who.count);
}

// The gradients of one step, with G at P and g at h (in x.v's neighbour `g`) known: from there to those of the step before.
template <bool known, class V, class Scalar>
LDM_INLINE void adjoin_step(Workspace<V>& x, const Problem<Scalar>& q, const Gradients<Scalar>& d, V* g, const V* l, V* gv, V* vv, V* z, Index n, Index m,
                            Index t, const Span& who) {
    const bool masked = q.mask.data;
    copy(x.v, x.w, m);
    solve_upper(x.v, x.L, x.inverse, m, 1);
    gain(x, n, m);
    product<Sum::set, Form::ab, false, known>(x.Kg, x.Kt, g, m, n, 1);
    for (Index i = 0; i < m; ++i) {
        z[i] = x.Kg[i] - *l * x.v[i];
        for (Index j = 0; j < n; ++j) gv[i * n + j] = x.v[i] * g[j];
        for (Index j = 0; j < m; ++j) vv[i * m + j] = *l * x.v[i] * x.v[j];
    }
    adjoin_correction<known>(x, gv, vv, *l, n, m, masked, d.C.data != nullptr);
    if (d.C.data) {
        for (Index i = 0; i < m; ++i) {
            for (Index j = 0; j < n; ++j) x.sum.C[i * n + j] -= z[i] * x.p[j];
        }
    }
    product<Sum::minus, Form::atb, false, known>(g, x.model.C, z, n, m, 1);
    const Index row = who.first * q.time + t;
    if (d.at.predicted_mean) {
        read_arriving(x.p, d.at.predicted_mean, t, 1, n, q.time, who);
        add(g, x.p, n);
    }
    if (d.at.predicted_cov) {
        read_arriving(x.square, d.at.predicted_cov, t, 1, n * n, q.time, who);
        add_symmetric(x.u, x.square, n);
    }
    if (d.R_own) write(d.R_own + row * m * m, x.dS, m * m, q.time * m * m, who.count);
    if (t == 0 && !q.from_belief) return copy(x.G, x.u, n * n);
    if (d.A.data) {
        for (Index i = 0; i < n; ++i) {
            for (Index j = 0; j < n; ++j) x.sum.A[i * n + j] += g[i] * x.h[j];
        }
    }
    add(x.sum.a, g, n);
    adjoin_prediction<known>(x, n, d.A.data != nullptr);
    copy(x.p, g, n);
    product<Sum::set, Form::atb, false, known>(g, x.model.A, x.p, n, n, 1);
}

template <int N, int M, class V, class Scalar>
LDM_INLINE void backward_span(const Problem<Scalar>& q, const Moments<const Scalar>& out, const Gradients<Scalar>& d, const Span& who) {
    constexpr bool known = N > 0;
    const Index n = known ? N : q.n, m = known ? M : q.m, T = q.time;
    const bool masked = q.mask.data;
    Workspace<V> x(n, m);
    const Chunk<V> chunk(n, m, T);
    Room<V> room(n + 1 + n * m + m * m + chunk.steps * m);
    V *g = room.take(n), *l = room.take(1), *gv = room.take(n * m), *vv = room.take(m * m), *z = room.take(chunk.steps * m);
    if (!q.R.time) fetch(chunk.R, q.R, m * m, 0, who);
    for (Index start = (T - 1) / chunk.steps * chunk.steps; start >= 0; start -= chunk.steps) {
        const Index steps = smaller(chunk.steps, T - start);
        read_measurements(chunk, q, start, steps, who);
        read_before(chunk, out, start, steps, n, T, who);
        read_arriving(chunk.at_mean, d.at.mean, start, steps, n, T, who);
        read_arriving(chunk.at_cov, d.at.cov, start, steps, n * n, T, who);
        if (!d.same_density) read_arriving(chunk.at_density, d.at.log_likelihood, start, steps, 1, T, who);
        for (Index s = steps - 1; s >= 0; --s) {
            const Index t = start + s;
            fetch_model(x, q, t, t == T - 1, who);
            take_noise(x, chunk, q, s);
            if (masked) fetch_mask(x.seen, q.mask, t, m, who);
            copy(x.h, chunk.mean + s * n, n);
            copy(x.P, chunk.cov + s * n * n, n * n);
            predict<known>(x, q, n, t, who);
            innovate<known>(x, chunk.z + s * m, n, m, masked);
            if (d.at.mean) add(g, chunk.at_mean + s * n, n);
            if (d.at.cov) add_symmetric(x.G, chunk.at_cov + s * n * n, n);
            *l = !d.at.log_likelihood ? V{} : d.same_density ? spread<V>(static_cast<double>(*d.at.log_likelihood)) : chunk.at_density[s];
            adjoin_step<known>(x, q, d, g, l, gv, vv, z + s * m, n, m, t, who);
            flush(d.A, x.sum.A, n * n, t, t == 0, who);
            flush(d.a, x.sum.a, n, t, t == 0, who);
            flush(d.Q, x.sum.Q, n * n, t, t == 0, who);
            flush(d.C, x.sum.C, m * n, t, t == 0, who);
            flush(d.R, x.sum.R, m * m, t, t == 0, who);
        }
        if (d.z) write(d.z + (who.first * T + start) * m, z, steps * m, T * m, who.count);
    }
    flush(d.h0, g, n, 0, true, who);
    flush(d.P0, x.G, n * n, 0, true, who);
}

}  // namespace LDM_ISA
}  // namespace ldm
