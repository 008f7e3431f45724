// The plan where all sequences share the covariances: their recursion runs once, for one sequence, and is at rest once it has converged. The means
// then run through its gains (shared_means.hpp).
#pragma once

#include "lane_filter.hpp"

namespace ldm {
namespace LDM_ISA {

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
                const double share = moved != 0.0 ? moved / std::sqrt(now[i * n + i] * now[j * n + j]) : 0.0;
                change = share <= change ? change : share;
            }
        }
        if (!(change <= kApproach)) last_far = t;
        still = change <= kRest ? still + 1 : 0;
        return still >= 2 && last_far >= 0 && t - last_far <= kPatience;
    }
};

// The covariances of a plan at rest, again and again until step T: the share of one task among some.
inline void repeat(const Plan& plan, Index n, Index T, Index task, Index tasks) {
    const Index left = T - plan.steps, from = plan.steps + left * task / tasks, to = plan.steps + left * (task + 1) / tasks;
    for (double* x : {plan.cov, plan.predicted_cov}) {
        if (!x) continue;
        for (Index t = from; t < to; ++t) std::memcpy(x + t * n * n, x + (plan.steps - 1) * n * n, n * n * sizeof(double));
    }
}

template <class Scalar>
LDM_INLINE void fetch_covariances(Workspace<double>& x, const Problem<Scalar>& q, Index t, bool first_time) {
    const Span one{0, 1};
    fetch_model(x, q, t, first_time, one);
    if (first_time || q.R.time) {
        fetch(x.model.R, q.R, q.m * q.m, t, one);
        symmetrise(x.model.R, q.m);
    }
    if (q.mask.data) fetch_mask(x.seen, q.mask, t, q.m, one);
}

// P^- of step t, from P in x.P.
template <class Scalar>
LDM_INLINE void predict_shared(Workspace<double>& x, const Problem<Scalar>& q, Index t) {
    if (t == 0) {
        double* start = q.from_belief ? x.P : x.predicted;
        std::memcpy(start, q.P0.data, q.n * q.n * sizeof(double));
        symmetrise(start, q.n);
        if (!q.from_belief) return;
    }
    predict_cov<false>(x, q.n);
}

template <class Scalar>
void plan_forward(const Problem<Scalar>& q, Plan& plan, Failure& failure) {
    const Index n = q.n, m = q.m, T = q.time;
    const bool constant = !(q.A.time || q.Q.time || q.C.time || q.R.time || q.mask.data);
    Workspace<double> x(n, m, false);
    Rest rest;
    plan.steps = T;
    for (Index t = 0; t < T; ++t) {
        fetch_covariances(x, q, t, t == 0);
        predict_shared(x, q, t);
        if (constant && t > 0 && rest.reached(x.predicted, x.square, n, t)) {
            plan.steps = t;
            return;
        }
        copy(x.square, x.predicted, n * n);  // free until the next step
        const double worst = factorise<false>(x, n, m, q.mask.data);
        if (!(worst > 0.0)) {
            failure = {t, 0};
            return;
        }
        gain(x, n, m);
        invert_lower(x.L_inverse, x.L, x.inverse, m);
        double seen = static_cast<double>(m);
        if (q.mask.data) {
            seen = 0.0;
            for (Index i = 0; i < m; ++i) seen += x.seen[i];
        }
        plan.constant[t] = -0.5 * 1.8378770664093454836 * seen - log_diagonal(x.L, m);
        std::memcpy(plan.gain + t * m * n, x.Kt, m * n * sizeof(double));
        std::memcpy(plan.whitening + t * m * m, x.L_inverse, m * m * sizeof(double));
        if (plan.predicted_cov) std::memcpy(plan.predicted_cov + t * n * n, x.predicted, n * n * sizeof(double));
        correct_cov<false>(x, n, m);
        std::memcpy(plan.cov + t * n * n, x.P, n * n * sizeof(double));
    }
}

// Sums over the sequences that the covariances' adjoint starts from, of each distinct step: v g' (m, n), l v v' (m, m), l.
struct Sums {
    double *gv, *vv, *l;
};

template <class Scalar>
void plan_backward(const Problem<Scalar>& q, const Plan& plan, const double* at_cov, const double* at_predicted, const Sums& sums, const Gradients<Scalar>& d) {
    const Index n = q.n, m = q.m;
    const Span one{0, 1};
    Workspace<double> x(n, m);
    for (Index t = plan.steps - 1; t >= 0; --t) {
        fetch_covariances(x, q, t, t == plan.steps - 1);
        if (t > 0) std::memcpy(x.P, plan.cov + (t - 1) * n * n, n * n * sizeof(double));
        predict_shared(x, q, t);
        factorise<false>(x, n, m, q.mask.data);
        gain(x, n, m);
        if (at_cov) add_symmetric(x.G, at_cov + t * n * n, n);
        adjoin_correction<false>(x, sums.gv + t * m * n, sums.vv + t * m * m, sums.l[t], n, m, q.mask.data, d.C.data != nullptr);
        if (at_predicted) add_symmetric(x.u, at_predicted + t * n * n, n);
        if (t > 0 || q.from_belief) {
            adjoin_prediction<false>(x, n, d.A.data != nullptr);
        } else {
            copy(x.G, x.u, n * n);
        }
        flush(d.A, x.sum.A, n * n, t, t == 0, one);
        flush(d.Q, x.sum.Q, n * n, t, t == 0, one);
        flush(d.C, x.sum.C, m * n, t, t == 0, one);
        flush(d.R, x.sum.R, m * m, t, t == 0, one);
    }
    flush(d.P0, x.G, n * n, 0, true, one);
}

}  // namespace LDM_ISA
}  // namespace ldm
