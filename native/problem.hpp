// What the kernels are asked, in terms that every instruction set shares.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ldm {

using Index = std::ptrdiff_t;

// The values of an argument for each sequence and step, each of them contiguous. A step of 0 means constant in time, or shared by the batch.
template <class T>
struct Field {
    T* data;
    Index batch, time;
};

// 1 where a channel is observed; no data: everything is.
struct Mask {
    const std::uint8_t* data;
    Index batch, time, channel;
};

template <class Scalar>
struct Problem {
    Index batch, time, n, m;
    bool from_belief;  // (h0, P0) is the belief before the first step, and not its prediction
    Field<const double> A, a, Q, C, c, h0, P0;
    Field<const Scalar> z, R;
    Mask mask;
};

// What the filter yields, contiguous, (batch, time, ...); what is null is not wanted.
template <class Scalar>
struct Moments {
    Scalar *mean, *cov, *log_likelihood, *predicted_mean, *predicted_cov;
    Scalar *distance;  // e' S^-1 e; of sequences with covariances of their own only
};

// The gradients of what a model shares over batch or time are summed in double.
template <class Scalar>
struct Gradients {
    Moments<const Scalar> at;                // what arrives at the outputs, null where nothing does
    bool same_density;                       // what arrives at the log-likelihoods is one number for all, as from their sum
    Field<double> A, a, Q, C, R, h0, P0;     // zeroed by the caller unless each sequence has its own, and covariances too; null where not wanted
    Scalar *z, *R_own;                       // R_own: of an R that every sequence and step has to itself
};

// The covariances that all sequences share, and what the means need of them, of `steps` distinct steps: step t uses min(t, steps - 1).
struct Plan {
    double *cov, *predicted_cov;             // (T, n, n); predicted_cov may be null
    double *gain, *whitening, *constant;     // K' (T, m, n), L^-1 (T, m, m) and the log-density's constant (T)
    Index steps;
};

// Where a covariance that should be positive definite is not, first in time; step -1: nowhere.
struct Failure {
    Index step = -1, series = 0;
};

// A recursion through links.hpp: G (b, T - 1, n, n), u and y (B, T, n), or (B, T, n, n) where it is square, contiguous.
struct Links {
    Index batch, time, n;
    bool back, square;
    Field<const double> G;
    const double* u;
    double* y;
};

// Runs work(context, k) for k in [0, tasks) on some threads; which thread takes which task makes no difference to the result.
void parallel(Index tasks, int threads, void (*work)(void*, Index), void* context);

using LinkKernel = void (*)(const Links&, int threads);

// What a kernels_*.cpp offers, compiled for its instruction set.
template <class Scalar>
struct Kernels {
    void (*lanes_forward)(const Problem<Scalar>&, const Moments<Scalar>&, Failure&, int threads);
    void (*lanes_backward)(const Problem<Scalar>&, const Moments<const Scalar>&, const Gradients<Scalar>&, int threads);
    void (*shared_forward)(const Problem<Scalar>&, Plan&, const Moments<Scalar>&, Failure&, int threads);
    void (*shared_backward)(const Problem<Scalar>&, const Plan&, const Moments<const Scalar>&, const double* at_cov, const double* at_predicted,
                            const Gradients<Scalar>&, int threads);
};

#define LDM_DECLARE_KERNELS(isa)            \
    namespace isa {                         \
    extern const Kernels<float> kFloat;     \
    extern const Kernels<double> kDouble;   \
    extern const LinkKernel kLinks;         \
    }

LDM_DECLARE_KERNELS(base)
LDM_DECLARE_KERNELS(v3)
LDM_DECLARE_KERNELS(v4)

}  // namespace ldm
