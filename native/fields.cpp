#include "fields.hpp"

namespace ldm {
namespace {

// Calls `each` with the place of every row of a tensor, its last `inner` dimensions taken for one; false as soon as it says false.
template <class Each>
bool over(const Tensor& x, int inner, const Each& each) {
    const int outer = x.dims - inner;
    Index at[Tensor::kMost] = {};
    for (int k = 0; k < outer; ++k) {
        if (x.shape[k] == 0) return true;
    }
    for (Index place = 0;;) {
        if (!each(place)) return false;
        int k = outer - 1;
        for (; k >= 0; --k) {
            // What is repeated need be looked at once.
            const Index count = x.stride[k] == 0 ? 1 : x.shape[k];
            place += x.stride[k];
            if (++at[k] < count) break;
            place -= count * x.stride[k];
            at[k] = 0;
        }
        if (k < 0) return true;
    }
}

template <class Scalar>
bool finite_as(const Tensor& x) {
    const Scalar* data = x.as<const Scalar>();
    if (x.contiguous()) return all_finite(data, x.size());
    const Index length = x.shape[x.dims - 1], stride = x.stride[x.dims - 1];
    return over(x, 1, [&](Index place) {
        Scalar sum{};
        for (Index i = 0; i < length; ++i) sum += Scalar{0} * data[place + i * stride];
        return sum == Scalar{0};
    });
}

template <class Scalar>
bool variances_as(const Tensor& x) {
    const Index length = x.shape[x.dims - 1], step = x.stride[x.dims - 1] + x.stride[x.dims - 2];
    return over(x, 2, [&](Index place) {
        for (Index i = 0; i < length; ++i) {
            if (x.as<const Scalar>()[place + i * step] < Scalar{0}) return false;
        }
        return true;
    });
}

// All of an entry in double, contiguous.
template <class Scalar>
std::unique_ptr<double[]> copied(const Entry& e, Index columns) {
    const Index batch = e.batch_stride ? e.batch : 1, time = e.time_stride ? e.time : 1;
    std::unique_ptr<double[]> copy(new double[batch * time * e.size]);
    const Tensor& x = e.x;
    const Index across = x.stride[x.dims - 1], down = columns && columns < e.size ? x.stride[x.dims - 2] : 0;
    double* to = copy.get();
    for (Index b = 0; b < batch; ++b) {
        for (Index t = 0; t < time; ++t) {
            const Scalar* from = x.as<const Scalar>() + b * e.batch_stride + t * e.time_stride;
            for (Index k = 0; k < e.size; ++k) *to++ = static_cast<double>(columns ? from[k / columns * down + k % columns * across] : from[k * across]);
        }
    }
    return copy;
}

bool shows_everything(const Mask& mask, Index batch, Index steps, Index m) {
    for (Index b = 0; b < (mask.batch ? batch : 1); ++b) {
        for (Index t = 0; t < steps; ++t) {
            for (Index i = 0; i < (mask.channel ? m : 1); ++i) {
                if (!mask.data[b * mask.batch + t * mask.time + i * mask.channel]) return false;
            }
        }
    }
    return true;
}

}  // namespace

bool Entry::read(nb::handle object, Index rows, Index columns, Index batches, Index steps) {
    if (!look(object, x)) return false;
    const int event = columns ? 2 : 1, leads = steps ? 2 : 1, first = x.dims - event;
    const Index last = columns ? columns : rows;
    if ((first != 0 && first != leads) || x.shape[x.dims - 1] != last || (columns && x.shape[first] != rows)) return false;
    packed = (last == 1 || x.stride[x.dims - 1] == 1) && (!columns || rows == 1 || x.stride[first] == columns);
    size = rows * (columns ? columns : 1);
    if (!first) return true;
    batch = x.shape[0], batch_stride = batch == 1 ? 0 : x.stride[0];
    if (steps) time = x.shape[1], time_stride = time == 1 ? 0 : x.stride[1];
    return (batch == 1 || batch == batches) && (time == 1 || time == steps);
}

bool Fields::read(nb::handle arguments, bool open) {
    const auto item = [&](int k) { return nb::handle(PyTuple_GET_ITEM(arguments.ptr(), k)); };
    Tensor z, A;
    if (!look(item(kz), z) || !look(item(kA), A) || A.dims < 2 || z.size() == 0) return false;
    single = z.dims == 2;
    if (single ? !item(kNames).is_none() : z.dims != 3 || !z.contiguous()) return false;
    batch = z.shape[0], steps = single ? 1 : z.shape[1], m = z.shape[z.dims - 1], n = A.shape[A.dims - 1], kind = z.kind;
    if (n == 0 || (kind != Kind::float32 && kind != Kind::float64)) return false;
    const Index rows[] = {n, n, n, m, m, n, n, m, m}, columns[] = {n, 0, n, n, 0, 0, n, 0, m};
    for (int k = 0; k < kNames; ++k) {
        if (single && k == kc && item(k).is_none()) continue;
        if (!of[k].read(item(k), rows[k], columns[k], batch, single || k == kh0 || k == kP0 ? 0 : steps)) return false;
        if (of[k].x.kind != kind && (k >= kz || of[k].x.kind != Kind::float64)) return false;
    }
    from_belief = item(kNames + 1).ptr() == Py_True;
    if (single) return of[kz].packed && of[kR].packed;
    if (!of[kR].x.contiguous()) return false;
    bool mask_shared = true;
    if (!item(kNames).is_none()) {
        Tensor seen;
        if (!look(item(kNames), seen) || seen.kind != Kind::boolean || seen.dims < 2 || seen.dims > 3) return false;
        if ((seen.shape[0] != 1 && seen.shape[0] != batch) || seen.shape[1] != steps || (seen.dims == 3 && seen.shape[2] != m)) return false;
        mask = {seen.as<const std::uint8_t>(), seen.shape[0] == 1 ? 0 : seen.stride[0], seen.stride[1], seen.dims == 3 ? seen.stride[2] : 0};
        mask_shared = seen.shape[0] == 1;
        if (open && shows_everything(mask, batch, steps, m)) mask = {nullptr, 0, 0, 0}, mask_shared = true;
    }
    bool constant = !mask.data, one = mask_shared;
    for (int k : {kA, kQ, kC, kR}) constant = constant && of[k].time == 1;
    for (int k : {kA, kQ, kC, kR, kP0}) one = one && of[k].batch == 1;
    shared = batch > 1 ? one : constant;
    return !shared || of[kc].batch == 1;  // the means that share covariances also share c
}

bool Fields::sound() const {
    for (int k : {kA, ka, kQ, kC, kc, kh0, kP0}) {
        if (!all_finite(of[k].x)) return false;
    }
    return no_negative_variance(of[kQ].x) && no_negative_variance(of[kP0].x);
}

template <class Scalar>
Widened<Scalar>::Widened(const Fields& f) : problem{} {
    problem.batch = f.batch, problem.time = f.steps, problem.n = f.n, problem.m = f.m, problem.from_belief = f.from_belief;
    Field<const double>* fields[] = {&problem.A, &problem.a, &problem.Q, &problem.C, &problem.c, &problem.h0, &problem.P0};
    const Index columns[] = {f.n, 0, f.n, f.n, 0, 0, f.n};
    for (int k = 0; k < kz; ++k) {
        const Entry& e = f.of[k];
        if (!e.size) continue;  // there is none
        if (e.packed && e.x.kind == Kind::float64) {
            *fields[k] = {e.x.as<const double>(), e.batch_stride, e.time_stride};
            continue;
        }
        copies_[k] = e.x.kind == Kind::float64 ? copied<double>(e, columns[k]) : copied<float>(e, columns[k]);
        const Index time = e.time_stride ? e.time : 1;
        *fields[k] = {copies_[k].get(), e.batch_stride ? time * e.size : 0, e.time_stride ? e.size : 0};
    }
    const Entry &z = f.of[kz], &R = f.of[kR];
    problem.z = {z.x.as<const Scalar>(), z.batch_stride, z.time_stride};
    problem.R = {R.x.as<const Scalar>(), R.batch_stride, R.time_stride};
    problem.mask = f.mask;
}

template struct Widened<float>;
template struct Widened<double>;

// 0 x is NaN where x is not finite. Sums side by side, as one would wait for each addition.
template <class Scalar>
bool all_finite(const Scalar* data, Index size) {
    constexpr Index kSums = 32;
    Scalar sums[kSums] = {}, sum{};
    const Index whole = size - size % kSums;
    for (Index i = 0; i < whole; i += kSums) {
        for (Index j = 0; j < kSums; ++j) sums[j] += Scalar{0} * data[i + j];
    }
    for (Index i = whole; i < size; ++i) sum += Scalar{0} * data[i];
    for (const Scalar one : sums) sum += one;
    return sum == Scalar{0};
}

template bool all_finite<float>(const float*, Index);
template bool all_finite<double>(const double*, Index);

bool all_finite(const Tensor& x) {
    if (x.kind == Kind::float64) return finite_as<double>(x);
    return x.kind == Kind::float32 && finite_as<float>(x);
}

bool no_negative_variance(const Tensor& x) {
    if (x.dims < 2) return false;
    return x.kind == Kind::float64 ? variances_as<double>(x) : x.kind == Kind::float32 && variances_as<float>(x);
}

}  // namespace ldm
