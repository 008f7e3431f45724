// The nine tensors of a filtering problem and its mask as they came, and the problem that they make.
#pragma once

#include <memory>

#include "tensors.hpp"

namespace ldm {

enum Name { kA, ka, kQ, kC, kc, kh0, kP0, kz, kR, kNames };

// A tensor in its place: (1 | B, 1 | T, event) or (event), where it is initial or of a single step (1 | B, event) or (event).
struct Entry {
    Tensor x;
    Index size = 0, batch = 1, time = 1;              // of one event; how many there are
    Index batch_stride = 0, time_stride = 0;          // 0 where there is one
    bool packed = true;                               // whether an event is contiguous

    // Whether it fits; columns 0: the event is a vector. steps 0: it has no time.
    bool read(nb::handle object, Index rows, Index columns, Index batch, Index steps);
};

struct Fields {
    Entry of[kNames];
    Mask mask{};
    Index batch = 0, steps = 0, n = 0, m = 0;
    bool from_belief = false, shared = false;
    bool single = false;                              // one step of every sequence: nothing has a time, c may be missing, and no mask is taken
    Kind kind = Kind::other;

    // `open`: a mask that shows everything counts as none.
    bool read(nb::handle arguments, bool open);
    // Whether the model's numbers are finite, and no variance in it negative.
    bool sound() const;
};

// The problem, with the model in double: what is not, or is not contiguous, is copied.
template <class Scalar>
struct Widened {
    explicit Widened(const Fields& f);

    Problem<Scalar> problem;

  private:
    std::unique_ptr<double[]> copies_[kz];
};

template <class Scalar>
bool all_finite(const Scalar* data, Index size);
// Of a float tensor with any strides; false for others.
bool all_finite(const Tensor& x);
bool no_negative_variance(const Tensor& x);

}  // namespace ldm
