// Python bindings: ldm_filter.core._native. Called only by ldm_filter/core/native.py and ldm_filter/core/kernels.py.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <stdexcept>
#include <vector>

#include "dispatch.hpp"
#include "door.hpp"
#include "memory.hpp"

namespace ldm {

namespace {

// A NumPy array of float64, contiguous, held while this lives.
class View {
  public:
    View(nb::handle array, bool writable = false) {
        if (PyObject_GetBuffer(array.ptr(), &buffer_, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0)) != 0) throw nb::python_error();
        if (buffer_.itemsize == sizeof(double) && buffer_.format && std::strcmp(buffer_.format, "d") == 0) return;
        PyBuffer_Release(&buffer_);
        throw std::invalid_argument("an array of a filter step is not float64");
    }
    View(const View&) = delete;
    View& operator=(const View&) = delete;
    ~View() { PyBuffer_Release(&buffer_); }

    double* data() const { return static_cast<double*>(buffer_.buf); }
    Index size() const { return static_cast<Index>(buffer_.len / sizeof(double)); }

  private:
    Py_buffer buffer_;
};

// A model whose steps are taken one at a time, for one sequence or several side by side.
class Step {
  public:
    Step(nb::handle A, nb::handle a, nb::handle Q, nb::handle C, nb::handle c) {
        for (const nb::handle& array : {A, a, Q, C, c}) {
            const View view(array);
            fields_.emplace_back(view.data(), view.data() + view.size());
        }
        n_ = static_cast<Index>(fields_[1].size()), m_ = static_cast<Index>(fields_[4].size());
        if (n_ < 1 || m_ < 1 || size(0) != n_ * n_ || size(2) != n_ * n_ || size(3) != m_ * n_) {
            throw std::invalid_argument("the matrices of a filter step do not fit together");
        }
    }

    // From a belief (B n), (B n n) and measurements (B m) with their covariance (m m) or (B m m) to `out`, which holds one after another:
    // filtered mean and covariance, predicted mean and covariance, log-likelihood, distance. Returns the first sequence without a factor, or -1.
    Index run(nb::handle mean, nb::handle cov, nb::handle z, nb::handle R, nb::handle out) const {
        const View h(mean), P(cov), seen(z), noise(R), to(out, true);
        const Index batch = h.size() / n_, nn = n_ * n_, mm = m_ * m_;
        const bool fits = batch > 0 && h.size() == batch * n_ && P.size() == batch * nn && seen.size() == batch * m_ &&
                          (noise.size() == mm || noise.size() == batch * mm) && to.size() == 2 * batch * (n_ + nn + 1);
        if (!fits) throw std::invalid_argument("the arrays of a filter step do not fit its model");
        const auto constant = [&](int k) { return Field<const double>{fields_[k].data(), 0, 0}; };
        Problem<double> q{batch, 1, n_, m_, true, constant(0), constant(1), constant(2), constant(3), constant(4), {h.data(), n_, 0}, {P.data(), nn, 0},
                          {seen.data(), m_, m_}, {noise.data(), noise.size() == mm ? 0 : mm, 0}, {nullptr, 0, 0, 0}};
        Moments<double> y{};
        double* next = to.data();
        const auto take = [&](Index length) { return (next += batch * length) - batch * length; };
        y.mean = take(n_), y.cov = take(nn), y.predicted_mean = take(n_), y.predicted_cov = take(nn), y.log_likelihood = take(1), y.distance = take(1);
        Failure failure;
        kernels<double>().lanes_forward(q, y, failure, 1);
        return failure.step < 0 ? -1 : failure.series;
    }

  private:
    Index size(int k) const { return static_cast<Index>(fields_[k].size()); }

    std::vector<std::vector<double>> fields_;
    Index n_, m_;
};

}  // namespace
}  // namespace ldm

NB_MODULE(_native, module) {
    namespace nb = ldm::nb;
    module.attr("__version__") = LDM_FILTER_VERSION;
    module.def("filter", &ldm::filter);
    module.def("step", &ldm::step, nb::arg(), nb::arg().none(), nb::arg());
    module.def("adjoin", &ldm::adjoin, nb::arg(), nb::arg().none(), nb::arg().none(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg());
    module.def("links", &ldm::links);
    module.def("sound", &ldm::sound);
    module.def("use_exchange", &ldm::use_exchange);
    nb::class_<ldm::Step>(module, "Step")
        .def(nb::init<nb::handle, nb::handle, nb::handle, nb::handle, nb::handle>())
        .def("run", &ldm::Step::run);
    module.def("release_memory", &ldm::release_memory);
    module.def("instruction_sets", &ldm::instruction_sets);
    module.def("use_instruction_set", &ldm::use_instruction_set);
}
