// The adjoint of covariance_recursion.hpp, where the equations are.
#pragma once

#include "covariance_recursion.hpp"

namespace ldm {

template <class V>
struct AdjointRoom {
    std::vector<V> room;
    V *predicted, *before, *g, *u, *uA, *P_A, *sum_A, *K, *Kt, *E, *Ht, *F, *sum_C, *L, *dS, *square, *scratch, *sum_R, *inverse, *sum_Q;

    AdjointRoom(Index n, Index m) : room(8 * n * n + 6 * n * m + 5 * m * m + m) {
        V* next = room.data();
        for (V** x : {&predicted, &before, &g, &u, &uA, &P_A, &sum_A, &sum_Q}) *x = next, next += n * n;
        for (V** x : {&K, &Kt, &E, &Ht, &F, &sum_C}) *x = next, next += n * m;
        for (V** x : {&L, &dS, &square, &scratch, &sum_R}) *x = next, next += m * m;
        inverse = next;
    }
};

// x += sign y, and x += sign sym(y) of size (size, size).
template <class V>
LDM_INLINE void add_multiple(V* LDM_RESTRICT x, double sign, const V* LDM_RESTRICT y, Index size) {
    for (Index i = 0; i < size; ++i) x[i] += sign * y[i];
}

template <class V>
LDM_INLINE void add_symmetric(V* LDM_RESTRICT x, double sign, const V* LDM_RESTRICT y, Index size) {
    for (Index i = 0; i < size; ++i) {
        for (Index j = 0; j < size; ++j) {
            V both = y[i * size + j];
            both += y[j * size + i];
            x[i * size + j] += (0.5 * sign) * both;
        }
    }
}

// dS <- sym(L^-T low(L' dL) L^-1), with dL in `square`, which is lost. The scratch has room for (m, m).
template <class V>
LDM_INLINE void factor_adjoint(V* dS, V* square, const V* L, const V* inverse, V* scratch, Index m) {
    for (Index i = 0; i < m; ++i) {
        for (Index j = 0; j < m; ++j) {
            V sum{};
            for (Index k = i; k < m && j <= i; ++k) sum += L[k * m + i] * square[k * m + j];
            scratch[i * m + j] = i == j ? 0.5 * sum : sum;
        }
    }
    solve_upper(scratch, L, inverse, m, m);
    transpose(square, scratch, m, m);
    solve_upper(square, L, inverse, m, m);
    fill(dS, m * m);
    add_symmetric(dS, 1.0, square, m);
}

// What arrives at the outputs of step t; lanes past the last sequence get zeros.
template <class V>
struct Arriving {
    const CovarianceRecursion& q;
    const Span& who;
    const double* zeros;

    LDM_INLINE bool operator()(V* x, const double* data, Index size, Index t) const {
        if (data) read(x, data + (who.first * q.time + t) * size, size, q.time * size, who.count, zeros);
        return data != nullptr;
    }
};

// Adds the sum where it belongs: at every step, or at the end where all steps share the matrix.
template <class V>
LDM_INLINE void flush(const Field<double>& gradient, V* sum, Index size, Index t, bool last, const Span& who) {
    if (!gradient.data || !(gradient.time || last)) return;
    add_vector(gradient.data + who.first * gradient.batch + t * gradient.time, sum, size, gradient.batch, who.count);
    fill(sum, size);
}

// E, H' and dS, which every gradient of the step is made of; g at P_t is known.
template <class V>
LDM_INLINE void innovation_adjoint(AdjointRoom<V>& x, const CovarianceGradients& d, const Arriving<V>& arriving, Index t) {
    const Index n = arriving.q.n, m = arriving.q.m;
    for (Index i = 0; i < m; ++i) x.inverse[i] = map(x.L[i * m + i], [](double root) { return 1.0 / root; });
    fill(x.dS, m * m);
    if (arriving(x.square, d.at_factor, m * m, t)) factor_adjoint(x.dS, x.square, x.L, x.inverse, x.scratch, m);
    fill(x.Ht, m * n);
    if (arriving(x.E, d.at_gain, n * m, t)) {
        transpose(x.Ht, x.E, n, m);
            solve_both(x.Ht, x.L, x.inverse, m, n);
    }
    transpose(x.Kt, x.K, n, m);
    subtract_matmul(x.Ht, x.Kt, x.g, m, n, n);  // E', until it is H' below
    transpose(x.E, x.Ht, m, n);
    matmul(x.square, x.Kt, x.E, m, n, m);
    add_symmetric(x.dS, -1.0, x.square, m);
    subtract_matmul(x.Ht, x.Kt, x.g, m, n, n);
}

// u at P^-_t, the gradients of the step's matrices, and g at P_{t-1}.
template <class V>
LDM_INLINE void step_adjoint(AdjointRoom<V>& x, const CovarianceGradients& d, const Step<V>& step, const Arriving<V>& arriving, Index t) {
    const Index n = arriving.q.n, m = arriving.q.m;
    std::copy(x.g, x.g + n * n, x.u);
    if (arriving(x.uA, d.at_predicted, n * n, t)) add_symmetric(x.u, 1.0, x.uA, n);
    add_multiple(x.sum_R, 1.0, x.dS, m * m);
    matmul(x.F, x.dS, step.C, m, m, n);
    add_multiple(x.Ht, 1.0, x.F, m * n);
    matmul(x.uA, step.Ct, x.Ht, n, m, n);
    add_symmetric(x.u, 1.0, x.uA, n);
    if (d.C.data) {
        add_multiple(x.Ht, 1.0, x.F, m * n);
        add_matmul(x.sum_C, x.Ht, x.predicted, m, n, n);
    }
    if (t == 0) return;
    add_multiple(x.sum_Q, 1.0, x.u, n * n);
    matmul(x.uA, x.u, step.A, n, n, n);
    if (d.A.data) {
        matmul(x.P_A, x.uA, x.before, n, n, n);
        add_multiple(x.sum_A, 2.0, x.P_A, n * n);
    }
    fill(x.g, n * n);
    add_lower(x.g, step.At, x.uA, n, n);
    mirror(x.g, n);
}

template <class V>
LDM_INLINE void read_outputs(AdjointRoom<V>& x, const CovarianceGradients& d, const Step<V>& step, const CovarianceRecursion& q, Index t, const Span& who) {
    const Index n = q.n, m = q.m, row = who.first * q.time + t;
    if (t > 0) read(x.before, d.filtered + (row - 1) * n * n, n * n, q.time * n * n, who.count);
    if (d.predicted) {
        read(x.predicted, d.predicted + row * n * n, n * n, q.time * n * n, who.count);
    } else {
        predict(x.predicted, x.before, step, q, t, who);
    }
    read(x.K, d.gain + row * n * m, n * m, q.time * n * m, who.count);
    read(x.L, d.factor + row * m * m, m * m, q.time * m * m, who.count);
}

template <class V>
LDM_INLINE void backward_block(const CovarianceRecursion& q, const CovarianceGradients& d, const Span& who, const double* zeros) {
    const Index n = q.n, m = q.m;
    const Arriving<V> arriving{q, who, zeros};
    Step<V> step(n, m);
    AdjointRoom<V> x(n, m);
    for (Index t = q.time - 1; t >= 0; --t) {
        fetch_step(step, q, t, t == q.time - 1, who);
        read_outputs(x, d, step, q, t, who);
        if (arriving(x.u, d.at_filtered, n * n, t)) add_symmetric(x.g, 1.0, x.u, n);
        innovation_adjoint(x, d, arriving, t);
        step_adjoint(x, d, step, arriving, t);
        flush(d.C, x.sum_C, m * n, t, t == 0, who);
        flush(d.R, x.sum_R, m * m, t, t == 0, who);
        flush(d.A, x.sum_A, n * n, t, t == 0, who);
        flush(d.Q, x.sum_Q, n * n, t, t == 0, who);
    }
    if (d.P0.data) add_vector(d.P0.data + who.first * d.P0.batch, x.u, n * n, d.P0.batch, who.count);
}

LDM_INLINE void backward(const CovarianceRecursion& q, const CovarianceGradients& d) {
    const Index size = std::max(q.n, q.m);
    const std::vector<double> zeros(size * size);
    if (alone(q)) {
        for (Index first = 0; first < q.batch; ++first) backward_block<double>(q, d, {first, 1}, zeros.data());
    } else {
        for (Index first = 0; first < q.batch; first += kPack) backward_block<Lanes<kPack>>(q, d, block_from(first, q), zeros.data());
    }
}

}  // namespace ldm
