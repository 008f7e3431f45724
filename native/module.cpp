// Python bindings: ldm_filter.core._native. Called only by ldm_filter/core/native.py, which checks every shape first: what comes here
// are addresses and strides, in the order of the structures in problem.hpp.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <cmath>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "memory.hpp"
#include "problem.hpp"

namespace nb = nanobind;

namespace ldm {

void parallel(Index tasks, int threads, void (*work)(void*, Index), void* context) {
    std::atomic<Index> next{0};
    const auto run = [&] {
        for (Index task = next++; task < tasks; task = next++) work(context, task);
    };
    const int helpers = static_cast<int>(std::min<Index>(threads, tasks)) - 1;
    std::vector<std::thread> crew;
    for (int k = 0; k < helpers; ++k) crew.emplace_back(run);
    run();
    for (std::thread& worker : crew) worker.join();
}

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

// Whether every number of these arrays (address, length) is finite.
template <class Scalar>
bool all_finite(const Numbers& arrays) {
    double sum = 0.0;
    for (std::size_t k = 0; k + 1 < arrays.size(); k += 2) {
        const auto* data = reinterpret_cast<const Scalar*>(arrays[k]);
        for (std::int64_t i = 0; i < arrays[k + 1]; ++i) sum += 0.0 * data[i];
    }
    return sum == 0.0;
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

template <class Scalar>
void bind(nb::module_& module, const std::string& suffix) {
    module.def(("lanes_forward_" + suffix).c_str(), &lanes_forward<Scalar>);
    module.def(("lanes_backward_" + suffix).c_str(), &lanes_backward<Scalar>);
    module.def(("shared_forward_" + suffix).c_str(), &shared_forward<Scalar>);
    module.def(("shared_backward_" + suffix).c_str(), &shared_backward<Scalar>);
    module.def(("all_finite_" + suffix).c_str(), &all_finite<Scalar>);
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
    module.def("release_memory", &ldm::release_memory);
    module.def("instruction_sets", [] {
        std::vector<std::string> names;
        for (const auto& one : ldm::choices()) names.push_back(one.name);
        return names;
    });
    module.def("use_instruction_set", &ldm::choose);
}
