// Recursions from step to step through matrices G_t that link step t to t + 1, as the smoother and its adjoint run them.
//
//   back:     y_t = u_t + G_t y_{t+1},          Y_t = U_t + G_t Y_{t+1} G_t'
//   forward:  y_{t+1} = u_{t+1} + G_t' y_t,     Y_{t+1} = U_{t+1} + G_t' Y_t G_t          each the adjoint of the other
#pragma once

#include "lane_filter.hpp"

namespace ldm {
namespace LDM_ISA {

template <class V>
LDM_INLINE void link_span(const Links& q, const Span& who) {
    const Index n = q.n, size = q.square ? n * n : n, T = q.time;
    Room<V> room(2 * n * n + 2 * size);
    V *G = room.take(n * n), *half = room.take(n * n), *y = room.take(size), *next = room.take(size);
    for (Index k = 0; k < T; ++k) {
        const Index t = q.back ? T - 1 - k : k;
        read(next, q.u + (who.first * T + t) * size, size, T * size, who.count);
        if (k > 0) {
            fetch(G, q.G, n * n, q.back ? t : t - 1, who);
            if (q.square) {
                q.back ? product<Sum::set, Form::ab, false, false>(half, G, y, n, n, n) : product<Sum::set, Form::atb, false, false>(half, G, y, n, n, n);
                q.back ? product<Sum::plus, Form::abt, false, false>(next, half, G, n, n, n) : product<Sum::plus, Form::ab, false, false>(next, half, G, n, n, n);
            } else {
                q.back ? product<Sum::plus, Form::ab, false, false>(next, G, y, n, n, 1) : product<Sum::plus, Form::atb, false, false>(next, G, y, n, n, 1);
            }
        }
        if (q.square) symmetrise(next, n);
        write(q.y + (who.first * T + t) * size, next, size, T * size, who.count);
        V* before = y;
        y = next;
        next = before;
    }
}

}  // namespace LDM_ISA
}  // namespace ldm
