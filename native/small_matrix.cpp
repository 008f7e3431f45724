#include "small_matrix.hpp"

namespace ldm {

#define LDM_DEFINE_PRODUCTS(V)                                                                                         \
    LDM_CLONED void add_matmul(V* y, const V* a, const V* b, Index rows, Index inner, Index columns) {                 \
        matmul_body<1>(y, a, b, rows, inner, columns);                                                                 \
    }                                                                                                                  \
    LDM_CLONED void subtract_matmul(V* y, const V* a, const V* b, Index rows, Index inner, Index columns) {            \
        matmul_body<-1>(y, a, b, rows, inner, columns);                                                                \
    }                                                                                                                  \
    LDM_CLONED void add_lower(V* y, const V* a, const V* b, Index size, Index inner) { lower_body(y, a, b, size, inner); } \
    LDM_CLONED void solve_both(V* x, const V* L, const V* inverse, Index size, Index columns) {                        \
        solve_lower_body(x, L, inverse, size, columns);                                                                \
        solve_upper_body(x, L, inverse, size, columns);                                                                \
    }                                                                                                                  \
    LDM_CLONED void solve_upper(V* x, const V* L, const V* inverse, Index size, Index columns) {                       \
        solve_upper_body(x, L, inverse, size, columns);                                                                \
    }

LDM_DEFINE_PRODUCTS(Lanes<kPack>)
LDM_DEFINE_PRODUCTS(double)

}  // namespace ldm
