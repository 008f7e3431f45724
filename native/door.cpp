#include "door.hpp"

#include <memory>
#include <stdexcept>
#include <vector>

#include "dispatch.hpp"
#include "fields.hpp"
#include "gradients.hpp"

namespace ldm {
namespace {

// A problem so small that waking the threads would cost more than they save is the caller's alone.
int fitting(const Fields& f, int threads) {
    constexpr Index kSmall = 50000;
    const Index size = f.n + f.m;
    return f.batch * f.steps * size * size * size < kSmall ? 1 : threads;
}

template <class Scalar>
nb::object filter_as(const Fields& f, bool predicted, bool keep, bool check, int threads) {
    const Widened<Scalar> given(f);
    const Problem<Scalar>& q = given.problem;
    const Index B = f.batch, T = f.steps, n = f.n, m = f.m, lead = f.shared ? 1 : B;
    const Kind kind = kind_of<Scalar>, cov_kind = f.shared ? Kind::float64 : kind;
    void *mean, *cov, *density, *before = nullptr, *before_cov = nullptr;
    const nb::object means = fresh(kind, {B, T, n}, mean), covs = fresh(cov_kind, {lead, T, n, n}, cov), densities = fresh(kind, {B, T}, density);
    const nb::object means_before = predicted ? fresh(kind, {B, T, n}, before) : none();
    const nb::object covs_before = predicted ? fresh(cov_kind, {lead, T, n, n}, before_cov) : none();
    const auto as = [](void* data) { return static_cast<Scalar*>(data); };
    Moments<Scalar> out{as(mean), nullptr, as(density), as(before), nullptr, nullptr};
    Plan plan{static_cast<double*>(cov), static_cast<double*>(before_cov), nullptr, nullptr, nullptr, T};
    Failure failure;
    nb::object kept = none();
    if (f.shared) {
        void *gain, *whitening, *constant;
        Numbers own;
        if (keep) {
            kept = nb::make_tuple(fresh(Kind::float64, {T, m, n}, gain), fresh(Kind::float64, {T, m, m}, whitening), fresh(Kind::float64, {T}, constant));
        } else {
            own.reset(new double[T * (m * n + m * m + 1)]);
            gain = own.get(), whitening = own.get() + T * m * n, constant = own.get() + T * m * (n + m);
        }
        plan.gain = static_cast<double*>(gain), plan.whitening = static_cast<double*>(whitening), plan.constant = static_cast<double*>(constant);
        const nb::gil_scoped_release unlocked;
        kernels<Scalar>().shared_forward(q, plan, out, failure, threads);
    } else {
        out.cov = as(cov), out.predicted_cov = as(before_cov);
        const nb::gil_scoped_release unlocked;
        kernels<Scalar>().lanes_forward(q, out, failure, threads);
    }
    if (check && (failure.step >= 0 || !all_finite(out.log_likelihood, B * T))) return none();
    return nb::make_tuple(means, covs, densities, means_before, covs_before, kept, plan.steps, failure.step, failure.series);
}

// One step of every sequence. `seen`: how many channels are observed, for all or for each; a missing channel is left out of the density, where it
// stands as one without noise of others, without a row in C and without an innovation.
template <class Scalar>
nb::object step_as(const Fields& f, const Tensor* seen, int threads) {
    const Widened<Scalar> given(f);
    const Index B = f.batch, n = f.n;
    constexpr Kind kind = kind_of<Scalar>;
    void *mean, *cov, *density, *before, *before_cov;
    const nb::object means = fresh(kind, {B, n}, mean), covs = fresh(kind, {B, n, n}, cov), densities = fresh(kind, {B}, density);
    const nb::object means_before = fresh(kind, {B, n}, before), covs_before = fresh(kind, {B, n, n}, before_cov);
    const auto as = [](void* data) { return static_cast<Scalar*>(data); };
    Failure failure;
    {
        const nb::gil_scoped_release unlocked;
        kernels<Scalar>().lanes_forward(given.problem, {as(mean), as(cov), as(density), as(before), as(before_cov), nullptr}, failure, threads);
    }
    constexpr double kHalfLog2Pi = 0.9189385332046727418;
    for (Index b = 0; seen && b < B; ++b) {
        const Index place = seen->size() == 1 ? 0 : b * seen->stride[0];
        const double count = seen->kind == Kind::int64 ? static_cast<double>(seen->as<const std::int64_t>()[place]) : seen->as<const double>()[place];
        as(density)[b] += static_cast<Scalar>(kHalfLog2Pi * (static_cast<double>(f.m) - count));
    }
    return nb::make_tuple(means, covs, densities, means_before, covs_before, failure.step < 0 ? -1 : failure.series);
}

double* numbers_of(nb::handle object) {
    Tensor x;
    if (!look(object, x) || x.kind != Kind::float64 || !x.contiguous()) throw std::invalid_argument("a plan is not contiguous in float64");
    return x.as<double>();
}

// c enters as z - c.
template <class Scalar>
void gradient_of_offset(const Field<double>& to, const Scalar* at_z, const Fields& f) {
    for (Index b = 0; b < f.batch; ++b) {
        for (Index t = 0; t < f.steps; ++t) {
            for (Index i = 0; i < f.m; ++i) to.data[b * to.batch + t * to.time + i] -= *at_z++;
        }
    }
}

template <class Scalar>
nb::list adjoin_as(const Fields& f, nb::handle mean, nb::handle cov, nb::handle plan, Index distinct, nb::handle arriving, nb::handle needed, int threads) {
    const Widened<Scalar> given(f);
    const Kind kind = kind_of<Scalar>, cov_kind = f.shared ? Kind::float64 : kind;
    const auto wanted = [&](int k) { return PyTuple_GET_ITEM(needed.ptr(), k) == Py_True; };
    const auto at = [&](int k) { return nb::handle(PyTuple_GET_ITEM(arriving.ptr(), k)); };
    const auto as = [](const void* data) { return static_cast<const Scalar*>(data); };
    Gradients<Scalar> d{};
    const Arrived to_mean(at(0), kind), to_cov(at(1), cov_kind), to_density(at(2), kind, true), to_before(at(3), kind), to_before_cov(at(4), cov_kind);
    d.at.mean = as(to_mean.data), d.at.predicted_mean = as(to_before.data), d.at.log_likelihood = as(to_density.data), d.same_density = to_density.same;
    const Entry& noise = f.of[kR];
    const bool own_noise = wanted(kR) && !f.shared && noise.batch == f.batch && noise.time == f.steps;
    const auto gradient = [&](int k) { return Gradient(f.of[k], wanted(k) && !(k == kR && own_noise), f.shared || k == kc); };
    Gradient A = gradient(kA), a = gradient(ka), Q = gradient(kQ), C = gradient(kC), c = gradient(kc), h0 = gradient(kh0), P0 = gradient(kP0), R = gradient(kR);
    d.A = A.field, d.a = a.field, d.Q = Q.field, d.C = C.field, d.R = R.field, d.h0 = h0.field, d.P0 = P0.field;
    void *at_z, *at_R = nullptr;
    const nb::object to_z = fresh(kind, f.of[kz].x.shape, f.of[kz].x.dims, at_z);
    const nb::object to_R = own_noise ? fresh(kind, noise.x.shape, noise.x.dims, at_R) : none();
    d.z = static_cast<Scalar*>(at_z), d.R_own = static_cast<Scalar*>(at_R);
    Tensor filtered, covs;
    if (!f.single && (!look(mean, filtered) || !look(cov, covs))) throw std::invalid_argument("filtered moments are no plain tensors");
    Moments<const Scalar> out{filtered.as<const Scalar>(), nullptr, nullptr, nullptr, nullptr, nullptr};
    if (f.shared) {
        const auto part = [&](int k) { return numbers_of(nb::handle(PyTuple_GET_ITEM(plan.ptr(), k))); };
        const Plan done{covs.as<double>(), nullptr, part(0), part(1), part(2), distinct};
        const nb::gil_scoped_release unlocked;
        kernels<Scalar>().shared_backward(given.problem, done, out, static_cast<const double*>(to_cov.data), static_cast<const double*>(to_before_cov.data), d, threads);
    } else {
        out.cov = covs.as<const Scalar>(), d.at.cov = as(to_cov.data), d.at.predicted_cov = as(to_before_cov.data);
        const nb::gil_scoped_release unlocked;
        kernels<Scalar>().lanes_backward(given.problem, out, d, threads);
    }
    if (wanted(kc)) gradient_of_offset(c.field, d.z, f);
    nb::list grads;
    for (Gradient* g : {&A, &a, &Q, &C, &c, &h0, &P0}) grads.append(g->tensor());
    grads.append(wanted(kz) ? to_z : none());
    grads.append(own_noise ? to_R : R.tensor());
    return grads;
}

}  // namespace

nb::object filter(nb::handle arguments, bool predicted, bool keep, bool check, int threads) {
    Fields f;
    if (!f.read(arguments, check) || f.single || (check && !f.sound())) return none();
    threads = fitting(f, threads);
    return f.kind == Kind::float32 ? filter_as<float>(f, predicted, keep, check, threads) : filter_as<double>(f, predicted, keep, check, threads);
}

nb::object step(nb::handle arguments, nb::handle seen, int threads) {
    Fields f;
    Tensor count;
    const bool counted = !seen.is_none();
    if (!f.read(arguments, false) || !f.single || (counted && !look(seen, count))) return none();
    const bool fits = (count.kind == Kind::int64 || count.kind == Kind::float64) && count.dims <= 1 && (count.size() == 1 || count.size() == f.batch);
    if (counted && !fits) return none();
    const Tensor* counts = counted ? &count : nullptr;
    threads = fitting(f, threads);
    return f.kind == Kind::float32 ? step_as<float>(f, counts, threads) : step_as<double>(f, counts, threads);
}

nb::list adjoin(nb::handle arguments, nb::handle mean, nb::handle cov, nb::handle plan, Index distinct, bool open, nb::handle arriving, nb::handle needed, int threads) {
    Fields f;
    if (!f.read(arguments, open)) throw std::invalid_argument("the arguments of a filter are not laid out as its adjoint needs them");
    threads = fitting(f, threads);
    return f.kind == Kind::float32 ? adjoin_as<float>(f, mean, cov, plan, distinct, arriving, needed, threads)
                                   : adjoin_as<double>(f, mean, cov, plan, distinct, arriving, needed, threads);
}

nb::object links(nb::handle G, nb::handle u, bool back, int threads) {
    Tensor matrices, values;
    const bool plain = look(G, matrices) && look(u, values) && matrices.kind == Kind::float64 && values.kind == Kind::float64;
    if (!plain || !matrices.contiguous() || !values.contiguous() || matrices.dims != 4 || values.dims < 3) {
        throw std::invalid_argument("links takes contiguous tensors of float64: (1 | B, T - 1, n, n) and (B, T, n) or (B, T, n, n)");
    }
    const Index n = matrices.shape[3], batch = matrices.shape[0] == 1 ? 0 : (values.shape[1] - 1) * n * n;
    void* data;
    nb::object result = fresh(Kind::float64, values.shape, values.dims, data);
    const Links q{values.shape[0], values.shape[1], n, back, values.dims == 4, {matrices.as<const double>(), batch, n * n}, values.as<const double>(),
                  static_cast<double*>(data)};
    const nb::gil_scoped_release unlocked;
    link_kernel()(q, threads);
    return result;
}

bool sound(nb::sequence covs, nb::sequence others) {
    for (nb::handle one : covs) {
        Tensor x;
        if (!look(one, x) || !all_finite(x) || !no_negative_variance(x)) return false;
    }
    for (nb::handle one : others) {
        Tensor x;
        if (!look(one, x) || !all_finite(x)) return false;
    }
    return true;
}

}  // namespace ldm
