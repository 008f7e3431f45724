// Tensors of torch as they come from Python and go back to it. No header of torch is needed, so that one build serves all of its versions: what a
// tensor is like is asked through DLPack's exchange functions, which newer versions have and which cost some nanoseconds, or through its attributes.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <initializer_list>

#include "problem.hpp"

namespace ldm {

namespace nb = nanobind;

enum class Kind { float32, float64, int64, boolean, other };

template <class Scalar>
constexpr Kind kind_of = sizeof(Scalar) == sizeof(float) ? Kind::float32 : Kind::float64;

// What is seen of a tensor on the CPU; strides in numbers. It is good as long as the Python object is.
struct Tensor {
    static constexpr int kMost = 4;

    void* data = nullptr;
    int dims = 0;
    Index shape[kMost] = {}, stride[kMost] = {};
    Kind kind = Kind::other;

    template <class T>
    T* as() const {
        return static_cast<T*>(data);
    }
    Index size() const;
    bool contiguous() const;
};

// False where it is no plain torch.Tensor (or Parameter) with memory on the CPU, or has more than four dimensions.
bool look(nb::handle object, Tensor& x);

// A new tensor with numbers that are not set; `data` is where they are.
nb::object fresh(Kind kind, std::initializer_list<Index> shape, void*& data);
nb::object fresh(Kind kind, const Index* shape, int dims, void*& data);

// Whether DLPack's exchange functions are used from here on, where torch has them; returns whether they are.
bool use_exchange(bool wanted);

}  // namespace ldm
