// One long series with a model at rest. Its means are a constant linear recursion, h_t = F h_{t-1} + (what the data add), F = (I - K C) A: cut
// into chunks, one in each lane, it is run twice. Run from zero, a chunk ends at e; begun at s, it ends at F^L s + e, which is where the next one
// begins. The second run begins there. The cut depends on sizes alone, so that the result is the same on any number of threads.
#pragma once

#include "shared_means.hpp"

namespace ldm {
namespace LDM_ISA {

constexpr Index kChunks = 4 * kColumns * kWidth, kShortest = 64;  // chunks, and steps of the shortest chunk that pays

template <class Scalar>
class LongSeries {
  public:
    LongSeries(const Problem<Scalar>& q, const Plan& plan) : steps_((q.time - plan.steps) / kChunks), first_(q.time - steps_ * kChunks) {
        const bool varies = q.A.time || q.C.time || q.c.time || q.mask.data;
        if (q.batch != 1 || q.n > 32 || varies || steps_ < kShortest) steps_ = 0;
    }
    // Whether the chunks pay.
    explicit operator bool() const { return steps_ > 0; }

    // `run(problem, plan, outputs)` runs means over a batch.
    template <class Run>
    void means(const Problem<Scalar>& q, const Plan& plan, const Moments<Scalar>& out, const Run& run) const {
        Problem<Scalar> head = q;
        head.time = first_;
        run(head, plan, out);
        const Index n = q.n, L = steps_, T = first_;
        Room<double> room((kChunks + 5) * n * n);
        double* starts = room.take(kChunks * n);
        for (Index i = 0; i < n; ++i) starts[i] = out.mean[(T - 1) * n + i];
        Problem<Scalar> rest = q;
        rest.batch = kChunks, rest.time = L, rest.from_belief = true;
        rest.h0 = {starts, n, 0};
        rest.z = {q.z.data + T * q.z.time, L * q.z.time, q.z.time};
        rest.a = {q.a.data + T * q.a.time, L * q.a.time, q.a.time};
        const Index at = plan.steps - 1;
        const Plan still{nullptr, nullptr, plan.gain + at * q.m * n, plan.whitening + at * q.m * q.m, plan.constant + at, 1};
        const auto after = [&](Scalar* data, Index size) { return data ? data + T * size : nullptr; };
        const Moments<Scalar> to{after(out.mean, n), nullptr, after(out.log_likelihood, 1), after(out.predicted_mean, n), nullptr, nullptr};
        run(rest, still, to);
        double* power = closed_loop(q, still, room);
        for (Index k = 1; k < kChunks; ++k) {
            const Scalar* end = to.mean + (k * L - 1) * n;
            for (Index i = 0; i < n; ++i) starts[k * n + i] = end[i];
            // The first chunk began where it should, the others at zero.
            if (k > 1) product<Sum::plus, Form::ab, false, false>(starts + k * n, power, starts + (k - 1) * n, n, n, 1);
        }
        run(rest, still, to);
    }

  private:
    // F^L, by squaring.
    double* closed_loop(const Problem<Scalar>& q, const Plan& still, Room<double>& room) const {
        const Index n = q.n;
        double *F = room.take(n * n), *power = room.take(n * n), *J = room.take(n * n), *spare = room.take(n * n);
        for (Index i = 0; i < n; ++i) J[i * n + i] = power[i * n + i] = 1.0;
        product<Sum::minus, Form::atb, false, false, double>(J, still.gain, q.C.data, n, q.m, n);
        product<Sum::set, Form::ab, false, false, double>(F, J, q.A.data, n, n, n);
        const auto multiply = [&](double* x, const double* y) {
            product<Sum::set, Form::ab, false, false, double>(spare, x, y, n, n, n);
            copy(x, spare, n * n);
        };
        for (Index left = steps_; left > 0; left >>= 1) {
            if (left & 1) multiply(power, F);
            if (left > 1) {
                copy(J, F, n * n);
                multiply(F, J);
            }
        }
        return power;
    }

    Index steps_, first_;
};

}  // namespace LDM_ISA
}  // namespace ldm
