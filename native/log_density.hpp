// log N(e; 0, L L') without its constant, and its adjoint:  l = -|w|^2 / 2 - sum log L_ii,   w = L^-1 e
//
// With g at l and v = L^-T w:   gradient of e: -g v   of L: g (low(v w') - diag(1 / L_ii)), low the lower triangle
#pragma once

#include <algorithm>
#include <vector>

#include "small_matrix.hpp"

namespace ldm {

// e is (batch, time, m), l (batch, time), L (1 | batch, time, m, m). Everything is contiguous.
struct LogDensity {
    Index batch, time, m;
    bool shared;  // L by the batch
    const double *L, *e;
};

struct LogDensityGradients {
    const double* at_density;
    double *L, *e;  // L zeroed by the caller
};

// A block of W items: with a factor each, which may be of different steps, or of one step with one factor.
struct Items {
    Index first, stride;  // in l
    int count;
};

template <int W>
struct DensityRoom {
    std::vector<Lanes<W>> room;
    Lanes<W>*L, *inverse, *w, *v, *g;

    explicit DensityRoom(Index m) : room(m * m + 3 * m + 1) {
        L = room.data();
        inverse = L + m * m;
        w = inverse + m;
        v = w + m;
        g = v + m;
    }
};

template <int W>
LDM_INLINE void read_factor(DensityRoom<W>& x, const LogDensity& q, const Items& items, Index step) {
    const Index m = q.m;
    read(x.L, q.L + (q.shared ? step : items.first) * m * m, m * m, q.shared ? 0 : items.stride * m * m, items.count);
    for (Index i = 0; i < m; ++i) x.inverse[i] = map(x.L[i * m + i], [](double root) { return 1.0 / root; });
}

template <int W>
LDM_INLINE void whiten(DensityRoom<W>& x, const LogDensity& q, const Items& items) {
    read(x.w, q.e + items.first * q.m, q.m, items.stride * q.m, items.count);
    solve_lower_body(x.w, x.L, x.inverse, q.m, 1);
}

template <int W>
LDM_INLINE void density_block(DensityRoom<W>& x, const LogDensity& q, double* density, const Items& items, Index step, bool new_factor) {
    if (new_factor) {
        read_factor(x, q, items, step);
        x.g[0] = Lanes<W>{};
        for (Index i = 0; i < q.m; ++i) x.g[0] += map(x.L[i * q.m + i], [](double root) { return std::log(root); });
    }
    whiten(x, q, items);
    Lanes<W> sum = -1.0 * x.g[0];
    for (Index i = 0; i < q.m; ++i) sum += -0.5 * (x.w[i] * x.w[i]);
    write(density + items.first, &sum, 1, items.stride, items.count);
}

template <int W>
LDM_INLINE void density_adjoint_block(DensityRoom<W>& x, const LogDensity& q, const LogDensityGradients& d, const Items& items, Index step,
                                      bool new_factor) {
    const Index m = q.m;
    const double zero = 0.0;
    if (new_factor) read_factor(x, q, items, step);
    whiten(x, q, items);
    read(x.g, d.at_density + items.first, 1, items.stride, items.count, &zero);
    copy(x.v, x.w, m);
    solve_upper_body(x.v, x.L, x.inverse, m, 1);
    double* gradient = d.L + (q.shared ? step : items.first) * m * m;
    for (Index i = 0; i < m; ++i) {
        x.v[i] = x.g[0] * x.v[i];
        for (Index j = 0; j <= i; ++j) {
            Lanes<W> entry = x.v[i] * x.w[j];
            if (i == j) entry -= x.g[0] * x.inverse[i];
            add_vector(gradient + i * m + j, &entry, 1, q.shared ? 0 : items.stride * m * m, items.count);
        }
    }
    for (Index i = 0; i < m; ++i) x.v[i] = -1.0 * x.v[i];
    write(d.e + items.first * m, x.v, m, items.stride * m, items.count);
}

constexpr int kItems = 8;

LDM_INLINE Items items_from(Index first, Index last, Index offset, Index stride) {
    return {offset + first * stride, stride, static_cast<int>(std::min<Index>(last - first, kItems))};
}

LDM_INLINE void forward(const LogDensity& q, double* density) {
    DensityRoom<kItems> x(q.m);
    if (q.shared) {
        for (Index t = 0; t < q.time; ++t) {
            for (Index b = 0; b < q.batch; b += kItems) density_block(x, q, density, items_from(b, q.batch, t, q.time), t, b == 0);
        }
    } else {
        for (Index k = 0; k < q.batch * q.time; k += kItems) density_block(x, q, density, items_from(k, q.batch * q.time, 0, 1), 0, true);
    }
}

LDM_INLINE void backward(const LogDensity& q, const LogDensityGradients& d) {
    DensityRoom<kItems> x(q.m);
    if (q.shared) {
        for (Index t = 0; t < q.time; ++t) {
            for (Index b = 0; b < q.batch; b += kItems) density_adjoint_block(x, q, d, items_from(b, q.batch, t, q.time), t, b == 0);
        }
    } else {
        for (Index k = 0; k < q.batch * q.time; k += kItems) density_adjoint_block(x, q, d, items_from(k, q.batch * q.time, 0, 1), 0, true);
    }
}

}  // namespace ldm
