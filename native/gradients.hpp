// Gradients on their way through the door: those that arrive at outputs, and those that leave for the fields.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "fields.hpp"

namespace ldm {

using Numbers = std::unique_ptr<double[]>;

inline nb::object none() { return nb::none(); }

// What arrives at an output, contiguous; no data where nothing does.
class Arrived {
  public:
    // `one`: where it is one number for all, as a sum gives it, that number is enough.
    Arrived(nb::handle object, Kind kind, bool one = false) {
        if (object.is_none()) return;
        Tensor x;
        if (!look(object, x) || x.kind != kind) throw std::invalid_argument("what arrives at a kernel is no plain tensor of the dtype of its output");
        data = x.data, same = one;
        for (int k = 0; k < x.dims; ++k) same = same && (x.shape[k] == 1 || x.stride[k] == 0);
        if (!same && !x.contiguous()) lay_out(x, kind == Kind::float32 ? sizeof(float) : sizeof(double));
    }

    const void* data = nullptr;
    bool same = false;

  private:
    void lay_out(const Tensor& x, Index bytes) {
        const Index size = x.size();
        copy_.reset(new char[size * bytes]);
        for (Index k = 0; k < size; ++k) {
            Index place = 0, rest = k;
            for (int d = x.dims - 1; d >= 0; rest /= x.shape[d--]) place += rest % x.shape[d] * x.stride[d];
            std::memcpy(copy_.get() + k * bytes, x.as<const char>() + place * bytes, bytes);
        }
        data = copy_.get();
    }

    std::unique_ptr<char[]> copy_;
};

// The gradient of a field, summed in double whatever its dtype.
class Gradient {
  public:
    // `summed`: the kernel adds to it also where every sequence has its own.
    Gradient(const Entry& of, bool wanted, bool summed) : entry_(of) {
        if (!wanted) return;
        const Index size = of.x.size();
        if (of.x.kind == Kind::float64) {
            void* data;
            tensor_ = fresh(Kind::float64, of.x.shape, of.x.dims, data);
            field = {static_cast<double*>(data), 0, 0};
        } else {
            wide_.reset(new double[size]);
            field = {wide_.get(), 0, 0};
        }
        if (summed || of.batch == 1) std::fill_n(field.data, size, 0.0);
        field.time = of.time == 1 ? 0 : of.size;
        field.batch = of.batch == 1 ? 0 : of.time * of.size;
    }

    nb::object tensor() {
        if (!wide_) return field.data ? tensor_ : none();
        void* data;
        nb::object narrow = fresh(Kind::float32, entry_.x.shape, entry_.x.dims, data);
        for (Index k = 0; k < entry_.x.size(); ++k) static_cast<float*>(data)[k] = static_cast<float>(wide_[k]);
        return narrow;
    }

    Field<double> field{nullptr, 0, 0};

  private:
    const Entry& entry_;
    nb::object tensor_;
    Numbers wide_;
};

}  // namespace ldm
