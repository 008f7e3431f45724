// Python bindings: ldm_filter.core._native. Called only by ldm_filter/core/native.py, which checks every shape first.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <optional>

#include "covariance_adjoint.hpp"
#include "covariance_recursion.hpp"
#include "log_density.hpp"
#include "mean_recursion.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace ldm {

LDM_CLONED void run(const MeanRecursion& q, const MeanInputs<float>& in, const MeanOutputs<float>& out) { forward(q, in, out); }
LDM_CLONED void run(const MeanRecursion& q, const MeanInputs<double>& in, const MeanOutputs<double>& out) { forward(q, in, out); }
LDM_CLONED void run(const MeanRecursion& q, const MeanGradients<float>& d) { backward(q, d); }
LDM_CLONED void run(const MeanRecursion& q, const MeanGradients<double>& d) { backward(q, d); }
LDM_CLONED void run(const CovarianceRecursion& q, const CovarianceOutputs& out) { forward(q, out); }
LDM_CLONED void run(const CovarianceRecursion& q, const CovarianceGradients& d) { backward(q, d); }
LDM_CLONED void run(const LogDensity& q, double* density) { forward(q, density); }
LDM_CLONED void run(const LogDensity& q, const LogDensityGradients& d) { backward(q, d); }

template <class T, int Dims>
using Array = nb::ndarray<T, nb::ndim<Dims>, nb::c_contig, nb::device::cpu>;
template <class T, int Dims>
using Maybe = std::optional<Array<T, Dims>>;
using Matrices = Array<const double, 4>;  // (1 | batch, 1 | time, rows, columns)
using Sums = Maybe<double, 4>;            // their gradients

template <class MaybeArray>
auto address(const MaybeArray& x) {
    return x ? x->data() : nullptr;
}

template <class AnyArray>
Index step(const AnyArray& x, std::size_t dim) {
    Index size = 1;
    for (std::size_t k = dim + 1; k < x.ndim(); ++k) size *= static_cast<Index>(x.shape(k));
    return x.shape(dim) == 1 ? 0 : size;
}

Field<const double> field(const Matrices& x) { return {x.data(), step(x, 0), step(x, 1)}; }

Field<double> field(const Sums& x) { return x ? Field<double>{x->data(), step(*x, 0), step(*x, 1)} : Field<double>{nullptr, 0, 0}; }

// The means. Sizes from arrays of the shapes of z and a, whatever they hold.
template <class Latent, class Offset>
MeanRecursion means(const Matrices& A, const Matrices& C, const Matrices& K, const Latent& z, const Offset& a) {
    const Index batch = z.shape(0), time = z.shape(1), m = z.shape(2), n = A.shape(3);
    return {batch, time, n, m, field(A), field(C), field(K), step(a, 1), step(a, 0)};
}

template <class Scalar>
void mean_forward(Matrices A, Matrices C, Matrices K, Array<const Scalar, 3> z, Array<const Scalar, 3> a, Array<const Scalar, 2> h0,
                  Array<Scalar, 3> predicted, Array<Scalar, 3> filtered, Array<Scalar, 3> innovation) {
    const MeanRecursion q = means(A, C, K, z, a);
    const MeanInputs<Scalar> in{z.data(), a.data(), h0.data()};
    const MeanOutputs<Scalar> out{predicted.data(), filtered.data(), innovation.data()};
    nb::gil_scoped_release unlocked;
    run(q, in, out);
}

template <class Scalar>
void mean_backward(Matrices A, Matrices C, Matrices K, Array<const Scalar, 3> predicted, Array<const Scalar, 3> filtered,
                   Array<const Scalar, 3> innovation, Maybe<const Scalar, 3> at_predicted, Maybe<const Scalar, 3> at_filtered,
                   Maybe<const Scalar, 3> at_innovation, Sums grad_A, Sums grad_C, Sums grad_K, Array<Scalar, 3> grad_z, Array<double, 3> grad_a,
                   Array<Scalar, 2> grad_h0) {
    const MeanRecursion q = means(A, C, K, grad_z, grad_a);
    const MeanGradients<Scalar> d{predicted.data(), filtered.data(), innovation.data(), address(at_predicted), address(at_filtered), address(at_innovation),
                                  field(grad_A),    field(grad_C),   field(grad_K),     grad_a.data(),      grad_z.data(),     grad_h0.data()};
    nb::gil_scoped_release unlocked;
    run(q, d);
}

// The covariances. Sizes from the filtered covariance and the gain.
CovarianceRecursion covariances(const Matrices& A, const Matrices& Q, const Matrices& C, const Matrices& R, const Matrices& P0, Index batch, Index time) {
    return {batch, time, static_cast<Index>(A.shape(3)), static_cast<Index>(C.shape(2)), field(A), field(Q), field(C), field(R), field(P0)};
}

void covariance_forward(Matrices A, Matrices Q, Matrices C, Matrices R, Matrices P0, Maybe<double, 4> predicted, Array<double, 4> filtered,
                        Array<double, 4> gain, Array<double, 4> factor, Array<std::uint8_t, 2> failed) {
    const CovarianceRecursion q = covariances(A, Q, C, R, P0, failed.shape(0), failed.shape(1));
    const CovarianceOutputs out{address(predicted), filtered.data(), gain.data(), factor.data(), failed.data()};
    nb::gil_scoped_release unlocked;
    run(q, out);
}

void covariance_backward(Matrices A, Matrices Q, Matrices C, Matrices R, Matrices P0, Maybe<const double, 4> predicted, Matrices filtered, Matrices gain,
                         Matrices factor, Maybe<const double, 4> at_predicted, Maybe<const double, 4> at_filtered, Maybe<const double, 4> at_gain,
                         Maybe<const double, 4> at_factor, Sums grad_A, Sums grad_Q, Sums grad_C, Sums grad_R, Sums grad_P0) {
    const CovarianceRecursion q = covariances(A, Q, C, R, P0, filtered.shape(0), filtered.shape(1));
    const CovarianceGradients d{address(predicted),    filtered.data(),  gain.data(),       factor.data(),  address(at_predicted),
                                address(at_filtered),  address(at_gain),    address(at_factor),   field(grad_A),  field(grad_Q),
                                field(grad_C),      field(grad_R),    field(grad_P0)};
    nb::gil_scoped_release unlocked;
    run(q, d);
}

// The log-density of the innovations.
template <class Vectors>
LogDensity densities(const Matrices& factor, const Vectors& innovation) {
    const Index batch = innovation.shape(0), time = innovation.shape(1), m = innovation.shape(2);
    return {batch, time, m, static_cast<Index>(factor.shape(0)) != batch, factor.data(), innovation.data()};
}

void density_forward(Matrices factor, Array<const double, 3> innovation, Array<double, 2> density) {
    const LogDensity q = densities(factor, innovation);
    nb::gil_scoped_release unlocked;
    run(q, density.data());
}

void density_backward(Matrices factor, Array<const double, 3> innovation, Array<const double, 2> at_density, Array<double, 4> grad_factor,
                      Array<double, 3> grad_innovation) {
    const LogDensity q = densities(factor, innovation);
    const LogDensityGradients d{at_density.data(), grad_factor.data(), grad_innovation.data()};
    nb::gil_scoped_release unlocked;
    run(q, d);
}

// No conversion of any argument: a converted copy of an output array would be written and thrown away.
template <class Scalar>
void bind_means(nb::module_& module) {
    module.def("mean_forward", &mean_forward<Scalar>, "A"_a.noconvert(), "C"_a.noconvert(), "K"_a.noconvert(), "z"_a.noconvert(), "a"_a.noconvert(),
               "h0"_a.noconvert(), "predicted"_a.noconvert(), "filtered"_a.noconvert(), "innovation"_a.noconvert());
    module.def("mean_backward", &mean_backward<Scalar>, "A"_a.noconvert(), "C"_a.noconvert(), "K"_a.noconvert(), "predicted"_a.noconvert(),
               "filtered"_a.noconvert(), "innovation"_a.noconvert(), "at_predicted"_a.noconvert().none(), "at_filtered"_a.noconvert().none(),
               "at_innovation"_a.noconvert().none(), "grad_A"_a.noconvert().none(), "grad_C"_a.noconvert().none(), "grad_K"_a.noconvert().none(),
               "grad_z"_a.noconvert(), "grad_a"_a.noconvert(), "grad_h0"_a.noconvert());
}

void bind_covariances(nb::module_& module) {
    module.def("covariance_forward", &covariance_forward, "A"_a.noconvert(), "Q"_a.noconvert(), "C"_a.noconvert(), "R"_a.noconvert(),
               "P0"_a.noconvert(), "predicted"_a.noconvert().none(), "filtered"_a.noconvert(), "gain"_a.noconvert(), "factor"_a.noconvert(),
               "failed"_a.noconvert());
    module.def("covariance_backward", &covariance_backward, "A"_a.noconvert(), "Q"_a.noconvert(), "C"_a.noconvert(), "R"_a.noconvert(),
               "P0"_a.noconvert(), "predicted"_a.noconvert().none(), "filtered"_a.noconvert(), "gain"_a.noconvert(), "factor"_a.noconvert(),
               "at_predicted"_a.noconvert().none(), "at_filtered"_a.noconvert().none(), "at_gain"_a.noconvert().none(),
               "at_factor"_a.noconvert().none(), "grad_A"_a.noconvert().none(), "grad_Q"_a.noconvert().none(), "grad_C"_a.noconvert().none(),
               "grad_R"_a.noconvert().none(), "grad_P0"_a.noconvert().none());
    module.def("density_forward", &density_forward, "factor"_a.noconvert(), "innovation"_a.noconvert(), "density"_a.noconvert());
    module.def("density_backward", &density_backward, "factor"_a.noconvert(), "innovation"_a.noconvert(), "at_density"_a.noconvert(),
               "grad_factor"_a.noconvert(), "grad_innovation"_a.noconvert());
}

}  // namespace ldm

NB_MODULE(_native, module) {
    module.attr("__version__") = LDM_FILTER_VERSION;
    ldm::bind_means<float>(module);
    ldm::bind_means<double>(module);
    ldm::bind_covariances(module);
}
