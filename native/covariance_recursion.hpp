// The covariances of a Kalman filter, and their adjoint.
//
//   P^-_0 = P0,   P^-_t = A_t P_{t-1} A_t' + Q_t                 predicted covariance
//   S_t = C_t P^-_t C_t' + R_t = L_t L_t'                        of the innovation, and its factor
//   K_t = P^-_t C_t' S_t^-1                                      gain
//   P_t = (I - K_t C_t) P^-_t (I - K_t C_t)' + K_t R_t K_t'      filtered covariance
//
// Adjoint, backwards in time. g is the symmetric gradient at P_t, with what comes from later steps; dK, dL and dP^- arrive at
// the other outputs. The gain is the one that makes P_t = P^- - K S K' smallest, so in P_t only P^-, C and S count:
//
//   E = dK S^-1 - g K        H = dK S^-1 - 2 g K        dS = sym(L^-T low(L' dL) L^-1) - sym(K' E)
//   gradient of R: dS     of C: (2 dS C + H') P^-     of P^-: u = dP^- + g + sym(C' (dS C + H'))
//   gradient of Q: u      of A: 2 u A P_{t-1}         of P_{t-1}: A' u A       of P0: u at t = 0
//
// low(X) is the lower triangle of X with half its diagonal. Of Q, R and P0 only the symmetric part counts.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "small_matrix.hpp"

namespace ldm {

struct CovarianceRecursion {
    Index batch, time, n, m;
    Field<const double> A, Q, C, R, P0;
};

struct CovarianceOutputs {
    double *predicted, *filtered, *gain, *factor;  // predicted may be null: it is then not written
    std::uint8_t* failed;                          // (batch, time), 1 where S is not positive definite
};

struct CovarianceGradients {
    const double *predicted, *filtered, *gain, *factor;              // the outputs; predicted may be null: it is then computed anew
    const double *at_predicted, *at_filtered, *at_gain, *at_factor;  // the gradients that arrive there, null where none does
    Field<double> A, Q, C, R, P0;                                    // zeroed by the caller, null where it is not wanted
};

// The sequences that are worked on together: `first` and the next `count`.
struct Span {
    Index first;
    int count;
};

template <class V>
LDM_INLINE void fetch(V* x, const Field<const double>& field, Index size, Index t, const Span& who) {
    read(x, field.data + who.first * field.batch + t * field.time, size, field.batch, who.count);
}

// The matrices of one step, read again only where they change.
template <class V>
struct Step {
    std::vector<V> room;
    V *A, *At, *C, *Ct, *Q, *R, *scratch;

    Step(Index n, Index m) : room(4 * n * n + 2 * n * m + m * m) {
        A = room.data();
        At = A + n * n;
        Q = At + n * n;
        scratch = Q + n * n;
        C = scratch + n * n;
        Ct = C + m * n;
        R = Ct + m * n;
    }
};

template <class V>
LDM_INLINE void fetch_step(Step<V>& step, const CovarianceRecursion& q, Index t, bool first_time, const Span& who) {
    const Index n = q.n, m = q.m;
    if (first_time || q.A.time) {
        fetch(step.A, q.A, n * n, t, who);
        transpose(step.At, step.A, n, n);
    }
    if (first_time || q.Q.time) {
        fetch(step.Q, q.Q, n * n, t, who);
        symmetrise(step.Q, n);
    }
    if (first_time || q.C.time) {
        fetch(step.C, q.C, m * n, t, who);
        transpose(step.Ct, step.C, m, n);
    }
    if (first_time || q.R.time) {
        fetch(step.R, q.R, m * m, t, who);
        symmetrise(step.R, m);
    }
}

// P^- of step t from P of the step before; P may not be the same memory.
template <class V>
LDM_INLINE void predict(V* predicted, const V* filtered, const Step<V>& step, const CovarianceRecursion& q, Index t, const Span& who) {
    const Index n = q.n;
    if (t == 0) {
        read(predicted, q.P0.data + who.first * q.P0.batch, n * n, q.P0.batch, who.count);
        return symmetrise(predicted, n);
    }
    matmul(step.scratch, step.A, filtered, n, n, n);
    std::copy(step.Q, step.Q + n * n, predicted);
    add_lower(predicted, step.scratch, step.At, n, n);
    mirror(predicted, n);
}

// Whether a constant model has come to rest: no entry of P^- has moved by more than kRest of its scale sqrt(P_ii P_jj) in two
// steps on end, and it came there from kApproach within kPatience steps. At such a pace what is still missing is below
// kRest * kPatience / 16, about 1e-13; a slower model, which could still drift unseen, is never taken to be at rest.
constexpr double kRest = 1e-14, kApproach = 1e-7;
constexpr Index kPatience = 160;

struct Rest {
    Index last_far = -1, still = 0;

    LDM_INLINE bool reached(const double* now, const double* before, Index n, Index t) {
        double change = 0.0;
        for (Index i = 0; i < n; ++i) {
            for (Index j = 0; j <= i; ++j) {
                const double moved = std::abs(now[i * n + j] - before[i * n + j]);
                if (moved != 0.0) change = std::max(change, moved / std::sqrt(now[i * n + i] * now[j * n + j]));
            }
        }
        if (!(change <= kApproach)) last_far = t;
        still = change <= kRest ? still + 1 : 0;
        return still >= 2 && last_far >= 0 && t - last_far <= kPatience;
    }
};

template <class V>
struct ForwardRoom {
    std::vector<V> room;
    V *predicted, *filtered, *before, *CP, *Kt, *K, *KR, *J, *JP, *S, *L, *inverse;

    ForwardRoom(Index n, Index m) : room(5 * n * n + 4 * n * m + 2 * m * m + m) {
        predicted = room.data();
        filtered = predicted + n * n;
        before = filtered + n * n;
        J = before + n * n;
        JP = J + n * n;
        CP = JP + n * n;
        Kt = CP + n * m;
        K = Kt + n * m;
        KR = K + n * m;
        S = KR + n * m;
        L = S + m * m;
        inverse = L + m * m;
    }
};

// K, L and P of one step from its P^-; returns the smallest pivot of S.
template <class V>
LDM_INLINE V correct(ForwardRoom<V>& x, const Step<V>& step, Index n, Index m) {
    matmul(x.CP, step.C, x.predicted, m, n, n);
    std::copy(step.R, step.R + m * m, x.S);
    add_lower(x.S, x.CP, step.Ct, m, n);
    const V worst = cholesky(x.L, x.inverse, x.S, m);
    std::copy(x.CP, x.CP + m * n, x.Kt);
    solve_both(x.Kt, x.L, x.inverse, m, n);
    transpose(x.K, x.Kt, m, n);
    fill(x.J, n * n);
    const V one = map(V{}, [](double) { return 1.0; });
    for (Index i = 0; i < n; ++i) x.J[i * n + i] = one;
    subtract_matmul(x.J, x.K, step.C, n, m, n);
    matmul(x.JP, x.J, x.predicted, n, n, n);
    matmul(x.KR, x.K, step.R, n, m, m);
    fill(x.filtered, n * n);
    add_lower(x.filtered, x.KR, x.Kt, n, m);
    transpose(x.before, x.J, n, n);  // a room that is free until the next step
    add_lower(x.filtered, x.JP, x.before, n, n);
    mirror(x.filtered, n);
    return worst;
}

// A sequence at rest: the last step again and again.
inline void repeat(const CovarianceRecursion& q, const CovarianceOutputs& out, Index first, Index from) {
    const auto again = [&](double* x, Index size) {
        if (!x) return;
        double* row = x + first * q.time * size;
        for (Index t = from; t < q.time; ++t) std::copy(row + (from - 1) * size, row + from * size, row + t * size);
    };
    again(out.predicted, q.n * q.n);
    again(out.filtered, q.n * q.n);
    again(out.gain, q.n * q.m);
    again(out.factor, q.m * q.m);
}

template <class V>
LDM_INLINE void forward_block(const CovarianceRecursion& q, const CovarianceOutputs& out, const Span& who) {
    const Index n = q.n, m = q.m;
    const bool constant = std::is_same<V, double>::value && q.batch == 1 && !(q.A.time || q.Q.time || q.C.time || q.R.time);
    Step<V> step(n, m);
    ForwardRoom<V> x(n, m);
    std::vector<double> last(constant ? n * n : 0);
    Rest rest;
    for (Index t = 0; t < q.time; ++t) {
        const auto at = [&](double* data, Index size) { return data + (who.first * q.time + t) * size; };
        fetch_step(step, q, t, t == 0, who);
        predict(x.predicted, x.filtered, step, q, t, who);
        if constexpr (std::is_same<V, double>::value) {
            if (constant && t > 0 && rest.reached(x.predicted, last.data(), n, t)) return repeat(q, out, who.first, t);
            if (constant) std::copy(x.predicted, x.predicted + n * n, last.data());
        }
        const V worst = correct(x, step, n, m);
        for (int l = 0; l < who.count; ++l) out.failed[(who.first + l) * q.time + t] = !(lane(worst, l) > 0.0);
        if (out.predicted) write(at(out.predicted, n * n), x.predicted, n * n, q.time * n * n, who.count);
        write(at(out.filtered, n * n), x.filtered, n * n, q.time * n * n, who.count);
        write(at(out.gain, n * m), x.K, n * m, q.time * n * m, who.count);
        write(at(out.factor, m * m), x.L, m * m, q.time * m * m, who.count);
    }
}

// Blocks of kPack sequences, one in each lane. A single sequence, or matrices so large that a block would leave the cache, go alone.
constexpr Index kLargest = 24;

LDM_INLINE bool alone(const CovarianceRecursion& q) { return q.batch == 1 || std::max(q.n, q.m) > kLargest; }

LDM_INLINE Span block_from(Index first, const CovarianceRecursion& q) { return {first, static_cast<int>(std::min<Index>(q.batch - first, kPack))}; }

LDM_INLINE void forward(const CovarianceRecursion& q, const CovarianceOutputs& out) {
    if (alone(q)) {
        for (Index first = 0; first < q.batch; ++first) forward_block<double>(q, out, {first, 1});
    } else {
        for (Index first = 0; first < q.batch; first += kPack) forward_block<Lanes<kPack>>(q, out, block_from(first, q));
    }
}

}  // namespace ldm
