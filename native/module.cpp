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

LDM_CLONED void forward_float(const MeanRecursion<float>& q, const MeanOutputs<float>& out) { forward(q, out); }
LDM_CLONED void forward_double(const MeanRecursion<double>& q, const MeanOutputs<double>& out) { forward(q, out); }
LDM_CLONED void backward_float(const MeanRecursion<float>& q, const MeanGradients<float>& d) { backward(q, d); }
LDM_CLONED void backward_double(const MeanRecursion<double>& q, const MeanGradients<double>& d) { backward(q, d); }

void run(const MeanRecursion<float>& q, const MeanOutputs<float>& out) { forward_float(q, out); }
void run(const MeanRecursion<double>& q, const MeanOutputs<double>& out) { forward_double(q, out); }
void run(const MeanRecursion<float>& q, const MeanGradients<float>& d) { backward_float(q, d); }
void run(const MeanRecursion<double>& q, const MeanGradients<double>& d) { backward_double(q, d); }

template <class T, int Dims>
using Array = nb::ndarray<T, nb::ndim<Dims>, nb::c_contig, nb::device::cpu>;

template <class Scalar>
MeanRecursion<Scalar> recursion(const Array<const double, 3>& A, const Array<const double, 3>& C, const Array<const double, 3>& K,
                                const Array<const Scalar, 3>& z, const Array<const Scalar, 3>& a, const Array<const Scalar, 2>& h0) {
    const auto step = [](const auto& x, int dim, Index size) { return x.shape(dim) == 1 ? Index{0} : size; };
    const Index batch = z.shape(0), time = z.shape(1), m = z.shape(2), n = h0.shape(1);
    const Index a_time = step(a, 1, n), a_batch = step(a, 0, static_cast<Index>(a.shape(1)) * n);
    return {batch, time, n, m, A.data(), C.data(), K.data(), step(A, 0, n * n), step(C, 0, m * n), z.data(), a.data(), h0.data(), a_batch, a_time};
}

template <class Scalar>
void mean_forward(Array<const double, 3> A, Array<const double, 3> C, Array<const double, 3> K, Array<const Scalar, 3> z, Array<const Scalar, 3> a,
                  Array<const Scalar, 2> h0, Array<Scalar, 3> predicted, Array<Scalar, 3> filtered) {
    const auto q = recursion<Scalar>(A, C, K, z, a, h0);
    const MeanOutputs<Scalar> out{predicted.data(), filtered.data()};
    nb::gil_scoped_release unlocked;
    run(q, out);
}

template <class Scalar>
void mean_backward(Array<const double, 3> A, Array<const double, 3> C, Array<const double, 3> K, Array<const Scalar, 3> z, Array<const Scalar, 3> a,
                   Array<const Scalar, 2> h0, Array<const Scalar, 3> predicted, Array<const Scalar, 3> filtered,
                   std::optional<Array<const Scalar, 3>> at_predicted, std::optional<Array<const Scalar, 3>> at_filtered, Array<double, 3> grad_A,
                   Array<double, 3> grad_C, Array<double, 3> grad_K, Array<Scalar, 3> grad_z, Array<double, 3> grad_a, Array<Scalar, 2> grad_h0) {
    const auto q = recursion<Scalar>(A, C, K, z, a, h0);
    const MeanGradients<Scalar> d{predicted.data(),
                                  filtered.data(),
                                  at_predicted ? at_predicted->data() : nullptr,
                                  at_filtered ? at_filtered->data() : nullptr,
                                  grad_A.data(),
                                  grad_C.data(),
                                  grad_K.data(),
                                  grad_a.data(),
                                  grad_z.data(),
                                  grad_h0.data()};
    nb::gil_scoped_release unlocked;
    run(q, d);
}

// No conversion of any argument: a converted copy of an output array would be written and thrown away.
template <class Scalar>
void bind(nb::module_& module) {
    module.def("mean_forward", &mean_forward<Scalar>, "A"_a.noconvert(), "C"_a.noconvert(), "K"_a.noconvert(), "z"_a.noconvert(), "a"_a.noconvert(),
               "h0"_a.noconvert(), "predicted"_a.noconvert(), "filtered"_a.noconvert());
    module.def("mean_backward", &mean_backward<Scalar>, "A"_a.noconvert(), "C"_a.noconvert(), "K"_a.noconvert(), "z"_a.noconvert(),
               "a"_a.noconvert(), "h0"_a.noconvert(), "predicted"_a.noconvert(), "filtered"_a.noconvert(), "at_predicted"_a.noconvert().none(),
               "at_filtered"_a.noconvert().none(), "grad_A"_a.noconvert(), "grad_C"_a.noconvert(), "grad_K"_a.noconvert(), "grad_z"_a.noconvert(),
               "grad_a"_a.noconvert(), "grad_h0"_a.noconvert());
}

}  // namespace ldm

NB_MODULE(_native, module) {
    module.attr("__version__") = LDM_FILTER_VERSION;
    ldm::bind<float>(module);
    ldm::bind<double>(module);
}
