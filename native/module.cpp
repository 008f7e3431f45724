// Python bindings: ldm_filter.core._native. Called only by ldm_filter/core/native.py, which checks every shape first: what comes here
// are addresses and strides, in the order of the structures in problem.hpp.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "memory.hpp"
#include "problem.hpp"

namespace nb = nanobind;

namespace ldm {

namespace {

using Numbers = std::vector<std::int64_t>;

// Takes an argument list apart, front to back.
class Reader {
  public:
    explicit Reader(const Numbers& numbers) : next_(numbers.begin()), end_(numbers.end()) {}
    ~Reader() noexcept(false) {
        if (next_ != end_ && !std::uncaught_exceptions()) throw std::invalid_argument("a kernel was called with too many numbers");
    }
    Index number() {
        if (next_ == end_) throw std::invalid_argument("a kernel was called with too few numbers");
        return static_cast<Index>(*next_++);
    }
    template <class T>
    T* address() {
        return reinterpret_cast<T*>(number());
    }
    template <class T>
    Field<T> field() {
        T* data = address<T>();
        const Index batch = number();
        return {data, batch, number()};
    }

  private:
    Numbers::const_iterator next_, end_;
};

template <class Scalar>
Problem<Scalar> read_problem(const Numbers& numbers) {
    Reader x(numbers);
    Problem<Scalar> q{};
    q.batch = x.number(), q.time = x.number(), q.n = x.number(), q.m = x.number(), q.from_belief = x.number();
    for (Field<const double>* field : {&q.A, &q.a, &q.Q, &q.C, &q.c, &q.h0, &q.P0}) *field = x.field<const double>();
    q.z = x.field<const Scalar>(), q.R = x.field<const Scalar>();
    q.mask.data = x.address<const std::uint8_t>();
    q.mask.batch = x.number(), q.mask.time = x.number(), q.mask.channel = x.number();
    return q;
}

template <class Scalar>
Moments<Scalar> read_moments(const Numbers& numbers) {
    Reader x(numbers);
    Moments<Scalar> y{};
    for (Scalar** data : {&y.mean, &y.cov, &y.log_likelihood, &y.predicted_mean, &y.predicted_cov}) *data = x.address<Scalar>();
    return y;
}

template <class Scalar>
Gradients<Scalar> read_gradients(const Numbers& numbers, const Numbers& arriving) {
    Reader x(numbers);
    Gradients<Scalar> d{};
    d.at = read_moments<const Scalar>(arriving);
    for (Field<double>* field : {&d.A, &d.a, &d.Q, &d.C, &d.R, &d.h0, &d.P0}) *field = x.field<double>();
    d.z = x.address<Scalar>();
    d.R_own = x.address<Scalar>();
    return d;
}

Plan read_plan(const Numbers& numbers) {
    Reader x(numbers);
    Plan plan{};
    for (double** data : {&plan.cov, &plan.predicted_cov, &plan.gain, &plan.whitening, &plan.constant}) *data = x.address<double>();
    plan.steps = x.number();
    return plan;
}

struct Choice {
    std::string name;
    const Kernels<float>* singles;
    const Kernels<double>* doubles;
    const LinkKernel* links;
};

// The kernels of the best instruction set that this processor has.
std::vector<Choice> choices() {
    std::vector<Choice> found{{"base", &base::kFloat, &base::kDouble, &base::kLinks}};
#if defined(LDM_X86_LEVELS)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back({"v3", &v3::kFloat, &v3::kDouble, &v3::kLinks});
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        found.push_back({"v4", &v4::kFloat, &v4::kDouble, &v4::kLinks});
    }
#endif
    return found;
}

Choice chosen = choices().back();

template <class Scalar>
const Kernels<Scalar>& kernels();
template <>
const Kernels<float>& kernels() {
    return *chosen.singles;
}
template <>
const Kernels<double>& kernels() {
    return *chosen.doubles;
}

using Place = std::pair<Index, Index>;

template <class Scalar>
Place lanes_forward(const Numbers& problem, const Numbers& outputs, int threads) {
    const auto q = read_problem<Scalar>(problem);
    const auto out = read_moments<Scalar>(outputs);
    Failure failure;
    nb::gil_scoped_release unlocked;
    kernels<Scalar>().lanes_forward(q, out, failure, threads);
    return {failure.step, failure.series};
}

template <class Scalar>
void lanes_backward(const Numbers& problem, const Numbers& outputs, const Numbers& arriving, const Numbers& gradients, int threads) {
    const auto q = read_problem<Scalar>(problem);
    const auto out = read_moments<const Scalar>(outputs);
    const auto d = read_gradients<Scalar>(gradients, arriving);
    nb::gil_scoped_release unlocked;
    kernels<Scalar>().lanes_backward(q, out, d, threads);
}

// Returns the step of a failure, or -1, and the number of distinct steps.
template <class Scalar>
Place shared_forward(const Numbers& problem, const Numbers& plan_arrays, const Numbers& outputs, int threads) {
    const auto q = read_problem<Scalar>(problem);
    const auto out = read_moments<Scalar>(outputs);
    Plan plan = read_plan(plan_arrays);
    Failure failure;
    nb::gil_scoped_release unlocked;
    kernels<Scalar>().shared_forward(q, plan, out, failure, threads);
    return {failure.step, plan.steps};
}

template <class Scalar>
void shared_backward(const Numbers& problem, const Numbers& plan_arrays, const Numbers& outputs, const Numbers& arriving, const Numbers& at_covs,
                     const Numbers& gradients, int threads) {
    const auto q = read_problem<Scalar>(problem);
    const auto out = read_moments<const Scalar>(outputs);
    const auto d = read_gradients<Scalar>(gradients, arriving);
    const Plan plan = read_plan(plan_arrays);
    Reader x(at_covs);
    const double *at_cov = x.address<const double>(), *at_predicted = x.address<const double>();
    nb::gil_scoped_release unlocked;
    kernels<Scalar>().shared_backward(q, plan, out, at_cov, at_predicted, d, threads);
}

void links(const Numbers& numbers, int threads) {
    Reader x(numbers);
    Links q{};
    q.batch = x.number(), q.time = x.number(), q.n = x.number(), q.back = x.number(), q.square = x.number();
    q.G = x.field<const double>();
    q.u = x.address<const double>();
    q.y = x.address<double>();
    nb::gil_scoped_release unlocked;
    (*chosen.links)(q, threads);
}

// Whether every number of these arrays (address, length) is finite: 0 x is NaN where it is not. Sums side by side, as one would wait for each addition.
template <class Scalar>
bool all_finite(const Numbers& arrays) {
    constexpr int kSums = 32;
    Scalar sums[kSums] = {};
    for (std::size_t k = 0; k + 1 < arrays.size(); k += 2) {
        const auto* data = reinterpret_cast<const Scalar*>(arrays[k]);
        const std::int64_t length = arrays[k + 1], whole = length - length % kSums;
        for (std::int64_t i = 0; i < whole; i += kSums) {
            for (int j = 0; j < kSums; ++j) sums[j] += Scalar{0} * data[i + j];
        }
        for (std::int64_t i = whole; i < length; ++i) sums[0] += Scalar{0} * data[i];
    }
    Scalar sum{};
    for (const Scalar one : sums) sum += one;
    return sum == Scalar{0};
}

// Whether no matrix of these arrays (address, number of matrices, size) has a negative number on its diagonal.
template <class Scalar>
bool no_negative_variance(const Numbers& covs) {
    for (std::size_t k = 0; k + 2 < covs.size(); k += 3) {
        const auto* data = reinterpret_cast<const Scalar*>(covs[k]);
        const std::int64_t n = covs[k + 2];
        for (std::int64_t c = 0; c < covs[k + 1]; ++c) {
            for (std::int64_t i = 0; i < n; ++i) {
                if (data[c * n * n + i * (n + 1)] < Scalar{0}) return false;
            }
        }
    }
    return true;
}

// Bytes as a NumPy array that returns its memory when it is let go.
nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>> buffer(std::size_t bytes) {
    struct Loan {
        void* block;
        std::size_t bytes;
    };
    auto* loan = new Loan{take_memory(bytes), bytes};
    nb::capsule owner(loan, [](void* p) noexcept {
        auto* held = static_cast<Loan*>(p);
        return_memory(held->block, held->bytes);
        delete held;
    });
    return nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>>(loan->block, {bytes}, owner);
}

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

template <class Scalar>
void bind(nb::module_& module, const std::string& suffix) {
    module.def(("lanes_forward_" + suffix).c_str(), &lanes_forward<Scalar>);
    module.def(("lanes_backward_" + suffix).c_str(), &lanes_backward<Scalar>);
    module.def(("shared_forward_" + suffix).c_str(), &shared_forward<Scalar>);
    module.def(("shared_backward_" + suffix).c_str(), &shared_backward<Scalar>);
    module.def(("all_finite_" + suffix).c_str(), &all_finite<Scalar>);
    module.def(("no_negative_variance_" + suffix).c_str(), &no_negative_variance<Scalar>);
}

void choose(const std::string& name) {
    for (const Choice& one : choices()) {
        if (one.name == name) {
            chosen = one;
            return;
        }
    }
    throw std::invalid_argument("this processor or build has no kernels called " + name);
}

}  // namespace
}  // namespace ldm

NB_MODULE(_native, module) {
    module.attr("__version__") = LDM_FILTER_VERSION;
    ldm::bind<float>(module, "float32");
    ldm::bind<double>(module, "float64");
    module.def("links", &ldm::links);
    module.def("buffer", &ldm::buffer);
    nb::class_<ldm::Step>(module, "Step")
        .def(nb::init<nb::handle, nb::handle, nb::handle, nb::handle, nb::handle>())
        .def("run", &ldm::Step::run);
    module.def("release_memory", &ldm::release_memory);
    module.def("instruction_sets", [] {
        std::vector<std::string> names;
        for (const auto& one : ldm::choices()) names.push_back(one.name);
        return names;
    });
    module.def("use_instruction_set", &ldm::choose);
}
