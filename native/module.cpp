// Python bindings: ldm_filter.core._native. Called only by ldm_filter/core/native.py, which checks every shape first.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <optional>

#include "mean_recursion.hpp"

namespace nb = nanobind;
using namespace nb::literals;

// Compiled twice, for any processor and for those with AVX2 and FMA, and chosen when the module is loaded, where the compiler
// and the C library can. Named by level and not by processor: GCC takes arch=haswell for Intel's own processors only.
#if defined(LDM_TARGET_CLONES)
#define LDM_CLONED __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define LDM_CLONED
#endif

namespace ldm {

LDM_CLONED void run(const MeanRecursion& q, const MeanInputs<float>& in, const MeanOutputs<float>& out) { forward(q, in, out); }
LDM_CLONED void run(const MeanRecursion& q, const MeanInputs<double>& in, const MeanOutputs<double>& out) { forward(q, in, out); }
LDM_CLONED void run(const MeanRecursion& q, const MeanGradients<float>& d) { backward(q, d); }
LDM_CLONED void run(const MeanRecursion& q, const MeanGradients<double>& d) { backward(q, d); }

template <class T, int Dims>
using Array = nb::ndarray<T, nb::ndim<Dims>, nb::c_contig, nb::device::cpu>;
using Matrices = Array<const double, 3>;
using Sums = Array<double, 3>;

// Sizes from arrays of the shapes of z and a, whatever they hold.
template <class Latent, class Offset>
MeanRecursion recursion(const Matrices& A, const Matrices& C, const Matrices& K, const Latent& z, const Offset& a) {
    const auto step = [](const auto& x, int dim, Index size) { return x.shape(dim) == 1 ? Index{0} : size; };
    const Index batch = z.shape(0), time = z.shape(1), m = z.shape(2), n = A.shape(2);
    const Index a_row = static_cast<Index>(a.shape(1)) * n;
    return {batch, time, n, m, A.data(), C.data(), K.data(), step(A, 0, n * n), step(C, 0, m * n), step(a, 1, n), step(a, 0, a_row)};
}

template <class Scalar>
void mean_forward(Matrices A, Matrices C, Matrices K, Array<const Scalar, 3> z, Array<const Scalar, 3> a, Array<const Scalar, 2> h0,
                  Array<Scalar, 3> predicted, Array<Scalar, 3> filtered, Array<Scalar, 3> innovation) {
    const MeanRecursion q = recursion(A, C, K, z, a);
    const MeanInputs<Scalar> in{z.data(), a.data(), h0.data()};
    const MeanOutputs<Scalar> out{predicted.data(), filtered.data(), innovation.data()};
    nb::gil_scoped_release unlocked;
    run(q, in, out);
}

template <class Scalar>
void mean_backward(Matrices A, Matrices C, Matrices K, Array<const Scalar, 3> predicted, Array<const Scalar, 3> filtered,
                   Array<const Scalar, 3> innovation, std::optional<Array<const Scalar, 3>> at_predicted,
                   std::optional<Array<const Scalar, 3>> at_filtered, std::optional<Array<const Scalar, 3>> at_innovation, Sums grad_A, Sums grad_C,
                   Sums grad_K, Array<Scalar, 3> grad_z, Sums grad_a, Array<Scalar, 2> grad_h0) {
    const auto data = [](const auto& x) { return x ? x->data() : nullptr; };
    const MeanRecursion q = recursion(A, C, K, grad_z, grad_a);
    const MeanGradients<Scalar> d{predicted.data(),  filtered.data(), innovation.data(), data(at_predicted), data(at_filtered), data(at_innovation),
                                  grad_A.data(),     grad_C.data(),   grad_K.data(),     grad_a.data(),      grad_z.data(),     grad_h0.data()};
    nb::gil_scoped_release unlocked;
    run(q, d);
}

// No conversion of any argument: a converted copy of an output array would be written and thrown away.
template <class Scalar>
void bind(nb::module_& module) {
    module.def("mean_forward", &mean_forward<Scalar>, "A"_a.noconvert(), "C"_a.noconvert(), "K"_a.noconvert(), "z"_a.noconvert(), "a"_a.noconvert(),
               "h0"_a.noconvert(), "predicted"_a.noconvert(), "filtered"_a.noconvert(), "innovation"_a.noconvert());
    module.def("mean_backward", &mean_backward<Scalar>, "A"_a.noconvert(), "C"_a.noconvert(), "K"_a.noconvert(), "predicted"_a.noconvert(),
               "filtered"_a.noconvert(), "innovation"_a.noconvert(), "at_predicted"_a.noconvert().none(), "at_filtered"_a.noconvert().none(),
               "at_innovation"_a.noconvert().none(), "grad_A"_a.noconvert(), "grad_C"_a.noconvert(), "grad_K"_a.noconvert(), "grad_z"_a.noconvert(),
               "grad_a"_a.noconvert(), "grad_h0"_a.noconvert());
}

}  // namespace ldm

NB_MODULE(_native, module) {
    module.attr("__version__") = LDM_FILTER_VERSION;
    ldm::bind<float>(module);
    ldm::bind<double>(module);
}
