// The means where all sequences share the covariances: all run through the gains of one plan (shared_plan.hpp), two vectors of lanes at a time.
#pragma once

#include "shared_plan.hpp"

namespace ldm {
namespace LDM_ISA {

// Vectors of lanes side by side.
constexpr int kColumns = 2;

template <class V>
struct MeanRoom {
    Index steps;
    Room<V> room;
    V *A, *C, *Kt, *W, *c;                            // spread over the lanes
    V *a, *p, *e, *w, *v, *Kg, *g, *after;                // (size, kColumns)
    V *z, *f, *density, *at, *at_predicted, *at_density;  // (steps, size, kColumns)
    V *sum_A, *sum_C, *sum_a, *sum_gv, *sum_vv, *sum_l;

    static Index length(Index n) { return n > 32 ? 1 : smaller(16, 1 + 128 / n); }

    // The adjoint's sums start from zero.
    MeanRoom(Index n, Index m, bool zeroed)
        : steps(length(n)),
          room(2 * n * n + 4 * n * m + 2 * m * m + n + m + 1 + kColumns * (4 * n + 4 * m) + kColumns * steps * (3 * n + m + 2), zeroed) {
        for (V** x : {&A, &sum_A}) *x = room.take(n * n);
        for (V** x : {&C, &Kt, &sum_C, &sum_gv}) *x = room.take(n * m);
        for (V** x : {&W, &sum_vv}) *x = room.take(m * m);
        for (V** x : {&a, &p, &g, &after}) *x = room.take(n * kColumns);
        for (V** x : {&e, &w, &v, &Kg}) *x = room.take(m * kColumns);
        for (V** x : {&f, &at, &at_predicted}) *x = room.take(n * kColumns * steps);
        for (V** x : {&density, &at_density}) *x = room.take(kColumns * steps);
        z = room.take(m * kColumns * steps), c = room.take(m), sum_a = room.take(n), sum_l = room.take(1);
    }
};

// How many of a block's sequences fall into column c.
LDM_INLINE int in_column(int count, int c, int lanes) { return count <= c * lanes ? 0 : static_cast<int>(smaller(count - c * lanes, lanes)); }

template <class V, class Scalar>
LDM_INLINE void read_columns(V* x, const Scalar* data, Index length, Index stride, int count) {
    for (int c = 0; c < kColumns; ++c) {
        // A column without sequences repeats the first.
        const int own = in_column(count, c, width<V>);
        read(x + c, own ? data + c * width<V> * stride : data, length, stride, own ? own : 1, kColumns);
    }
}

template <class V, class Scalar>
LDM_INLINE void write_columns(Scalar* data, const V* x, Index length, Index stride, int count) {
    for (int c = 0; c < kColumns; ++c) {
        const int own = in_column(count, c, width<V>);
        if (own) write(data + c * width<V> * stride, x + c, length, stride, own, kColumns);
    }
}

template <class V, class Scalar>
LDM_INLINE void fetch_means(MeanRoom<V>& x, const Problem<Scalar>& q, const Plan& plan, Index t, bool first_time, const Span& who) {
    const Index n = q.n, m = q.m, at = smaller(t, plan.steps - 1);
    if (first_time || q.A.time) read(x.A, q.A.data + t * q.A.time, n * n, 0, 1);
    if (first_time || q.C.time) read(x.C, q.C.data + t * q.C.time, m * n, 0, 1);
    if (first_time || q.a.time) read_columns(x.a, q.a.data + who.first * q.a.batch + t * q.a.time, n, q.a.batch, who.count);
    if (first_time || q.c.time) read(x.c, q.c.data + t * q.c.time, m, 0, 1);
    if (!first_time && t >= plan.steps) return;
    read(x.Kt, plan.gain + at * m * n, m * n, 0, 1);
    read(x.W, plan.whitening + at * m * m, m * m, 0, 1);
}

// p, e and w of step t from f, the filtered mean before it. `plain`: not the first step, and all channels are there.
template <bool known, bool plain, class V, class Scalar>
LDM_INLINE void innovate_means(MeanRoom<V>& x, const Problem<Scalar>& q, V* p, V* e, V* w, const V* f, const V* z, Index n, Index m, Index t, const Span& who) {
    if (!plain && t == 0 && !q.from_belief) {
        read_columns(p, q.h0.data + who.first * q.h0.batch, n, q.h0.batch, who.count);
    } else {
        product_from<Sum::plus, Form::ab, false, known>(p, x.a, x.A, f, n, n, kColumns);
    }
    for (Index i = 0; i < m; ++i) {
        const bool seen = plain || !q.mask.data || q.mask.data[t * q.mask.time + i * q.mask.channel];
        for (int c = 0; c < kColumns; ++c) e[i * kColumns + c] = z[i * kColumns + c] - x.c[i];
        if (!seen) fill(e + i * kColumns, kColumns);
    }
    product<Sum::minus, Form::ab, false, known>(e, x.C, p, m, n, kColumns);
    if (!plain && q.mask.data) {
        for (Index i = 0; i < m; ++i) {
            if (!q.mask.data[t * q.mask.time + i * q.mask.channel]) fill(e + i * kColumns, kColumns);
        }
    }
    product<Sum::set, Form::ab, false, known>(w, x.W, e, m, m, kColumns);
}

// Room for a step's numbers: its own where the sizes are known, so that they stay in registers, else in memory.
template <int size, class V>
struct Numbers {
    V own[size * kColumns];
    V* in(V*) { return own; }
};

template <class V>
struct Numbers<0, V> {
    V* in(V* memory) { return memory; }
};

// Step t, the s-th of those in x, from f, the filtered mean before it, to f, that of t.
template <int N, int M, bool plain, class V, class Scalar>
LDM_INLINE void step_means(MeanRoom<V>& x, const Problem<Scalar>& q, const Plan& plan, Scalar* predicted_mean, V* f, Index n, Index m, Index t, Index s,
                           const Span& who) {
    constexpr bool known = N > 0;
    Numbers<N, V> p_room;
    Numbers<M, V> e_room, w_room;
    V *p = p_room.in(x.p), *e = e_room.in(x.e), *w = w_room.in(x.w);
    if (!plain) fetch_means(x, q, plan, t, t == 0, who);
    innovate_means<known, plain>(x, q, p, e, w, f, x.z + s * m * kColumns, n, m, t, who);
    if (predicted_mean) write_columns(predicted_mean + (who.first * q.time + t) * n, p, n, q.time * n, who.count);
    product_from<Sum::plus, Form::atb, false, known>(f, p, x.Kt, e, n, m, kColumns);
    copy(x.f + s * n * kColumns, f, n * kColumns);
    const V constant = spread<V>(plan.constant[smaller(t, plan.steps - 1)]);
    for (int c = 0; c < kColumns; ++c) {
        V square{};
        for (Index i = 0; i < m; ++i) square += w[i * kColumns + c] * w[i * kColumns + c];
        x.density[s * kColumns + c] = constant - 0.5 * square;
    }
}

template <int N, int M, class V, class Scalar>
LDM_INLINE void means_forward(const Problem<Scalar>& q, const Plan& plan, const Moments<Scalar>& out, const Span& who) {
    const Index n = N ? N : q.n, m = M ? M : q.m, T = q.time;
    MeanRoom<V> x(n, m, false);
    Numbers<N, V> f_room;
    V* f = f_room.in(x.after);
    if (q.from_belief) read_columns(f, q.h0.data + who.first * q.h0.batch, n, q.h0.batch, who.count);
    // From here on nothing is read but measurements.
    const Index plain = q.A.time || q.a.time || q.C.time || q.c.time || q.mask.data ? T : plan.steps;
    const auto row = [&](Scalar* data, Index t, Index size) { return data + (who.first * T + t) * size; };
    for (Index start = 0; start < T; start += x.steps) {
        const Index steps = smaller(x.steps, T - start);
        read_columns(x.z, q.z.data + (who.first * T + start) * m, steps * m, T * m, who.count);
        Index s = 0;
        for (; s < steps && start + s < plain; ++s) step_means<N, M, false>(x, q, plan, out.predicted_mean, f, n, m, start + s, s, who);
        for (; s < steps; ++s) step_means<N, M, true>(x, q, plan, out.predicted_mean, f, n, m, start + s, s, who);
        write_columns(row(out.mean, start, n), x.f, steps * n, T * n, who.count);
        write_columns(row(out.log_likelihood, start, 1), x.density, steps, T, who.count);
    }
}

// Adds the sum over the lanes, and clears it.
template <class V>
LDM_INLINE void collect(double* data, V* sum, Index size) {
    for (Index i = 0; data && i < size; ++i) data[i] += total(sum[i]);
    fill(sum, size);
}

// Spare lanes carry no gradient.
template <class V, class Scalar>
LDM_INLINE void read_arriving_columns(V* x, const Scalar* data, Index length, Index stride, int count) {
    if (!data) return;
    read_columns(x, data, length, stride, count);
    for (int c = 0; c < kColumns; ++c) {
        const int own = in_column(count, c, width<V>);
        if (own == width<V>) continue;
        V present{};
        for (int l = 0; l < own; ++l) set_lane(present, l, 1.0);
        for (Index i = 0; i < length; ++i) x[i * kColumns + c] *= present;
    }
}

template <class V>
LDM_INLINE void flush_own(const Field<double>& gradient, const V* x, Index size, Index t, const Span& who) {
    if (!gradient.data) return;
    double* data = gradient.data + who.first * gradient.batch + t * gradient.time;
    for (int l = 0; l < who.count; ++l) {
        for (Index i = 0; i < size; ++i) data[l * gradient.batch + i] += lane(x[i * kColumns + l / width<V>], l % width<V>);
    }
}

// The gradients of one step: g at f is known, and is then that of the step before.
template <bool known, class V, class Scalar>
LDM_INLINE void adjoin_means(MeanRoom<V>& x, const Problem<Scalar>& q, const Gradients<Scalar>& d, const V* before, const V* l, V* z, Index n, Index m, Index t,
                             const Span& who) {
    product<Sum::set, Form::atb, false, known>(x.v, x.W, x.w, m, m, kColumns);
    product<Sum::set, Form::ab, false, known>(z, x.Kt, x.g, m, n, kColumns);
    product<Sum::plus, Form::abt, false, known>(x.sum_gv, x.v, x.g, m, kColumns, n);
    for (Index i = 0; i < m; ++i) {
        for (int c = 0; c < kColumns; ++c) {
            x.Kg[i * kColumns + c] = l[c] * x.v[i * kColumns + c];
            z[i * kColumns + c] -= x.Kg[i * kColumns + c];
        }
    }
    product<Sum::plus, Form::abt, false, known>(x.sum_vv, x.Kg, x.v, m, kColumns, m);
    for (int c = 0; c < kColumns; ++c) x.sum_l[0] += l[c];
    if (d.C.data) product<Sum::minus, Form::abt, false, known>(x.sum_C, z, x.p, m, kColumns, n);
    product<Sum::minus, Form::atb, false, known>(x.g, x.C, z, n, m, kColumns);
    if (d.at.predicted_mean) add(x.g, x.at_predicted, n * kColumns);
    if (t == 0 && !q.from_belief) return;
    if (d.A.data) product<Sum::plus, Form::abt, false, known>(x.sum_A, x.g, before, n, kColumns, n);
    if (q.a.batch == 0) {
        for (Index i = 0; i < n; ++i) {
            for (int c = 0; c < kColumns; ++c) x.sum_a[i] += x.g[i * kColumns + c];
        }
    } else {
        flush_own(d.a, x.g, n, t, who);
    }
    copy(x.after, x.g, n * kColumns);
    product<Sum::set, Form::atb, false, known>(x.g, x.A, x.after, n, n, kColumns);
}

template <int N, int M, class V, class Scalar>
LDM_INLINE void means_backward(const Problem<Scalar>& q, const Plan& plan, const Moments<const Scalar>& out, const Gradients<Scalar>& d, const Sums& sums,
                               const Span& who) {
    constexpr bool known = N > 0;
    const Index n = known ? N : q.n, m = known ? M : q.m, T = q.time;
    MeanRoom<V> x(n, m, true);
    Room<V> room(kColumns * x.steps * m);
    V* z = room.take(kColumns * x.steps * m);
    const auto row = [&](Index t, Index size) { return (who.first * T + t) * size; };
    for (Index start = (T - 1) / x.steps * x.steps; start >= 0; start -= x.steps) {
        const Index steps = smaller(x.steps, T - start), skip = start == 0 ? 1 : 0;
        read_columns(x.z, q.z.data + row(start, m), steps * m, T * m, who.count);
        if (skip && q.from_belief) read_columns(x.f, q.h0.data + who.first * q.h0.batch, n, q.h0.batch, who.count);
        if (steps > skip) read_columns(x.f + skip * n * kColumns, out.mean + row(start - 1 + skip, n), (steps - skip) * n, T * n, who.count);
        if (d.at.mean) read_arriving_columns(x.at, d.at.mean + row(start, n), steps * n, T * n, who.count);
        if (d.at.log_likelihood) {
            // One number for all of them has no stride, neither over sequences nor over steps.
            const Scalar* at = d.at.log_likelihood + (d.same_density ? 0 : row(start, 1));
            for (Index s = 0; d.same_density && s < steps; ++s) read_arriving_columns(x.at_density + s * kColumns, at, 1, 0, who.count);
            if (!d.same_density) read_arriving_columns(x.at_density, at, steps, T, who.count);
        }
        for (Index s = steps - 1; s >= 0; --s) {
            const Index t = start + s;
            const V* before = x.f + s * n * kColumns;
            fetch_means(x, q, plan, t, t == T - 1, who);
            innovate_means<known, false>(x, q, x.p, x.e, x.w, before, x.z + s * m * kColumns, n, m, t, who);
            if (d.at.mean) add(x.g, x.at + s * n * kColumns, n * kColumns);
            if (d.at.predicted_mean) read_arriving_columns(x.at_predicted, d.at.predicted_mean + row(t, n), n, T * n, who.count);
            adjoin_means<known>(x, q, d, before, x.at_density + s * kColumns, z + s * m * kColumns, n, m, t, who);
            if (t < plan.steps) {
                collect(sums.gv + t * m * n, x.sum_gv, m * n);
                collect(sums.vv + t * m * m, x.sum_vv, m * m);
                collect(sums.l + t, x.sum_l, 1);
            }
            if (t == 0 || q.A.time) collect(d.A.data ? d.A.data + t * q.A.time : nullptr, x.sum_A, n * n);
            if (t == 0 || q.C.time) collect(d.C.data ? d.C.data + t * q.C.time : nullptr, x.sum_C, m * n);
            if (q.a.batch == 0 && (t == 0 || q.a.time)) collect(d.a.data ? d.a.data + t * q.a.time : nullptr, x.sum_a, n);
        }
        if (d.z) write_columns(d.z + row(start, m), z, steps * m, T * m, who.count);
    }
    if (q.h0.batch == 0) {
        for (Index i = 0; i < n; ++i) {
            for (int c = 1; c < kColumns; ++c) x.g[i * kColumns] += x.g[i * kColumns + c];
            if (d.h0.data) d.h0.data[i] += total(x.g[i * kColumns]);
        }
    } else {
        flush_own(d.h0, x.g, n, 0, who);
    }
}

}  // namespace LDM_ISA
}  // namespace ldm
