// One step of the filter's covariance and its adjoint.
//
//   P^- = A P A' + Q,   S = C P^- C' + R = L L',   X = L^-1 C P^-,   P = P^- - X' X,   gain K = X' L^-1 ... = (L^-T X)'
//
// Where the measurement takes away nearly all that was uncertain, P^- - X' X would be a small difference of large numbers: there
// Joseph's form P = (I - K C) P^- (I - K C)' + K R K' is used, a sum of positive terms.
//
// A channel that is missing has no row in C, no noise shared with others, and an innovation of zero.
//
// Adjoint. G is the symmetric gradient at P, g that at the filtered mean, l that at the log-density; v = S^-1 e. The gain is the one
// that makes P smallest, so only P^-, C and S count (with D' = K' G - v g' / 2):
//
//   dS = l (v v' - S^-1) / 2 + K' G K - (K' g v' + v g' K) / 2             gradient of R
//   F = dS C,   H = F - 2 D'        u = G + sym(C' H)                     gradient of P^- and Q
//   gradient of C: (H + F) P^-      of A: 2 u A P                         of the P before: A' u A
//
// Where many sequences share the covariances, only the sums of g v', l v v' and l over them enter.
#pragma once

#include "products.hpp"

namespace ldm {
namespace LDM_ISA {

// Below this share of the predicted variance the filtered one is computed by Joseph's form: above it, P^- - X' X is good to 1e-13.
constexpr double kSafe = 1e-3;

template <class V>
struct Model {
    V *A, *a, *Q, *C, *c, *R;
};

template <class V>
struct Workspace {
    V *P, *predicted, *AP, *X, *S, *L, *inverse, *Kt, *J, *square;                 // forward
    V *G, *u, *D, *H, *F, *dS, *L_inverse, *outer, *Kg;                               // adjoint
    V *h, *p, *e, *w, *v, *seen;                                                      // means
    Model<V> model;
    Model<V> sum;  // gradients
    Room<V> room;

    Workspace(Index n, Index m, bool adjoint = true) : room(11 * n * n + 7 * n * m + 7 * m * m + 4 * n + 7 * m, false) {
        // What is added to, and an offset that may be missing, first: only that has to be zero.
        V* const start = model.c = room.take(m);
        for (V** x : {&G, &sum.A, &sum.Q}) *x = room.take(n * n);
        sum.C = room.take(n * m), sum.R = room.take(m * m), sum.a = room.take(n);
        fill(start, adjoint ? m + 3 * n * n + n * m + m * m + n : m);
        for (V** x : {&P, &predicted, &AP, &J, &square, &u, &model.A, &model.Q}) *x = room.take(n * n);
        for (V** x : {&X, &Kt, &D, &H, &F, &model.C}) *x = room.take(n * m);
        for (V** x : {&S, &L, &dS, &L_inverse, &outer, &model.R}) *x = room.take(m * m);
        for (V** x : {&h, &p, &model.a}) *x = room.take(n);
        for (V** x : {&inverse, &e, &w, &v, &seen, &Kg}) *x = room.take(m);
    }
};

template <bool known, class V>
LDM_INLINE void predict_cov(Workspace<V>& x, Index n) {
    product<Sum::set, Form::ab, false, known>(x.AP, x.model.A, x.P, n, n, n);
    product_from<Sum::plus, Form::abt, true, known>(x.predicted, x.model.Q, x.AP, x.model.A, n, n, n);
    mirror(x.predicted, n);
}

// S, L and X of the predicted covariance; returns the smallest pivot of S.
template <bool known, class V>
LDM_INLINE V factorise(Workspace<V>& x, Index n, Index m, bool masked) {
    product<Sum::set, Form::ab, false, known>(x.X, x.model.C, x.predicted, m, n, n);
    product_from<Sum::plus, Form::abt, true, known>(x.S, x.model.R, x.X, x.model.C, m, n, m);
    if (masked) {
        for (Index i = 0; i < m; ++i) {
            for (Index j = 0; j < n; ++j) x.X[i * n + j] *= x.seen[i];
            for (Index j = 0; j < i; ++j) x.S[i * m + j] *= x.seen[i] * x.seen[j];
            x.S[i * m + i] = x.seen[i] * x.S[i * m + i] + (1.0 - x.seen[i]);
        }
    }
    const V worst = cholesky(x.L, x.inverse, x.S, m);
    solve_lower(x.X, x.L, x.inverse, m, n);
    return worst;
}

// K' = L^-T X.
template <class V>
LDM_INLINE void gain(Workspace<V>& x, Index n, Index m) {
    solve<false>(x.Kt, x.X, x.L, x.inverse, m, n);
}

template <bool known, class V>
LDM_INLINE void joseph(Workspace<V>& x, Index n, Index m) {
    gain(x, n, m);
    fill(x.J, n * n);
    for (Index i = 0; i < n; ++i) x.J[i * n + i] = spread<V>(1.0);
    product<Sum::minus, Form::atb, false, known>(x.J, x.Kt, x.model.C, n, m, n);
    product<Sum::set, Form::ab, false, known>(x.AP, x.J, x.predicted, n, n, n);
    product<Sum::set, Form::abt, true, known>(x.P, x.AP, x.J, n, n, n);
    product<Sum::set, Form::ab, false, known>(x.X, x.model.R, x.Kt, m, m, n);
    product<Sum::plus, Form::atb, true, known>(x.P, x.Kt, x.X, n, m, n);
    mirror(x.P, n);
}

template <bool known, class V>
LDM_INLINE void correct_cov(Workspace<V>& x, Index n, Index m) {
    product_from<Sum::minus, Form::atb, true, known>(x.P, x.predicted, x.X, x.X, n, m, n);
    bool safe = true;
    for (Index i = 0; i < n; ++i) safe = safe && all_less(kSafe * x.predicted[i * n + i], x.P[i * n + i]);
    if (safe) return mirror(x.P, n);
    joseph<known>(x, n, m);
}

// dS, F, H and u, and their shares of the gradients of C and R. Needs K', L, v and G; `gv` (m, n) is v g', `vv` (m, m) is l v v', and `l` as it is.
template <bool known, class V>
LDM_INLINE void adjoin_correction(Workspace<V>& x, const V* gv, const V* vv, const V& l, Index n, Index m, bool masked, bool of_C) {
    product<Sum::set, Form::ab, false, known>(x.D, x.Kt, x.G, m, n, n);  // K' G
    invert_lower(x.L_inverse, x.L, x.inverse, m);
    copy(x.dS, vv, m * m);
    for (Index i = 0; i < m; ++i) {
        for (Index j = 0; j <= i; ++j) {
            V inner{};  // S^-1 = L^-T L^-1
            for (Index k = i; k < m; ++k) inner += x.L_inverse[k * m + i] * x.L_inverse[k * m + j];
            x.dS[i * m + j] = 0.5 * (vv[i * m + j] - l * inner);
        }
    }
    product<Sum::plus, Form::abt, true, known>(x.dS, x.D, x.Kt, m, n, m);
    product<Sum::set, Form::abt, false, known>(x.outer, gv, x.Kt, m, n, m);  // v g' K
    for (Index i = 0; i < m; ++i) {
        for (Index j = 0; j <= i; ++j) {
            x.dS[i * m + j] -= 0.5 * (x.outer[i * m + j] + x.outer[j * m + i]);
            if (masked) x.dS[i * m + j] *= x.seen[i] * x.seen[j];
        }
    }
    mirror(x.dS, m);
    for (Index k = 0; k < m * n; ++k) x.D[k] -= 0.5 * gv[k];
    product<Sum::set, Form::ab, false, known>(x.F, x.dS, x.model.C, m, m, n);
    for (Index k = 0; k < m * n; ++k) x.H[k] = x.F[k] - 2.0 * x.D[k];
    product<Sum::set, Form::atb, false, known>(x.square, x.model.C, x.H, n, m, n);
    copy(x.u, x.G, n * n);
    add_symmetric(x.u, x.square, n);
    add(x.sum.R, x.dS, m * m);
    if (!of_C) return;
    add(x.H, x.F, m * n);
    product<Sum::plus, Form::ab, false, known>(x.sum.C, x.H, x.predicted, m, n, n);
}

// From u at P^- to G at the covariance before (in x.P); adds to the gradients of A and Q.
template <bool known, class V>
LDM_INLINE void adjoin_prediction(Workspace<V>& x, Index n, bool of_A) {
    add(x.sum.Q, x.u, n * n);
    product<Sum::set, Form::ab, false, known>(x.AP, x.u, x.model.A, n, n, n);
    if (of_A) {
        product<Sum::set, Form::ab, false, known>(x.square, x.AP, x.P, n, n, n);
        for (Index k = 0; k < n * n; ++k) x.sum.A[k] += 2.0 * x.square[k];
    }
    product<Sum::set, Form::atb, true, known>(x.G, x.model.A, x.AP, n, n, n);
    mirror(x.G, n);
}

}  // namespace LDM_ISA
}  // namespace ldm
