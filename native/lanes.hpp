// One sequence per SIMD lane: numbers V are vectors of doubles, a lane for each of kWidth sequences, or a plain double for one
// sequence alone. All arithmetic is in double; tensors of float are widened when they are read and rounded when they are written.
//
// This file and those that include it are compiled once for each instruction set (kernels_*.cpp), in a namespace of its own, so
// that nothing compiled for one processor can be linked into the code of another.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <new>

#if defined(__AVX512F__) || defined(__AVX__)
#include <immintrin.h>
#endif

#include "problem.hpp"

#if defined(_MSC_VER) && !defined(__clang__)
#define LDM_INLINE __forceinline
#define LDM_NOINLINE __declspec(noinline)
#define LDM_RESTRICT __restrict
#else
#define LDM_INLINE __attribute__((always_inline)) inline
#define LDM_NOINLINE __attribute__((noinline))
#define LDM_RESTRICT __restrict__
#endif

namespace ldm {
namespace LDM_ISA {

// Vector types where the compiler has them (GCC, Clang); elsewhere one lane.
#if defined(__GNUC__) || defined(__clang__)
#if defined(__AVX512F__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
using Vector = double __attribute__((vector_size(kWidth * sizeof(double))));
using Integers = std::int64_t __attribute__((vector_size(kWidth * sizeof(double))));
using Floats = float __attribute__((vector_size(kWidth * sizeof(float))));
#else
constexpr int kWidth = 1;
using Vector = double;
#endif

// Accumulators that the registers hold: rows of a block of four columns.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRows = 4;
#else
constexpr int kRows = 2;
#endif

template <class V>
constexpr int width = static_cast<int>(sizeof(V) / sizeof(double));

template <class V>
LDM_INLINE V spread(double x) {
    return V{} + x;
}

template <class V>
LDM_INLINE double lane(const V& x, int l) {
    if constexpr (width<V> == 1) {
        return x;
    } else {
        return x[l];
    }
}

template <class V>
LDM_INLINE void set_lane(V& x, int l, double value) {
    if constexpr (width<V> == 1) {
        x = value;
    } else {
        // By way of memory: stores to single lanes are joined by the compiler to stores that are aligned to more than a lane is.
        double lanes[width<V>];
        std::memcpy(lanes, &x, sizeof x);
        lanes[l] = value;
        std::memcpy(&x, lanes, sizeof x);
    }
}

template <class V>
LDM_INLINE double total(const V& x) {
    double sum = lane(x, 0);
    for (int l = 1; l < width<V>; ++l) sum += lane(x, l);
    return sum;
}

template <class V>
LDM_INLINE V root(const V& x) {
#if defined(__AVX512F__)
    if constexpr (width<V> == 8) return (V)_mm512_sqrt_pd((__m512d)x);
#elif defined(__AVX__)
    if constexpr (width<V> == 4) return (V)_mm256_sqrt_pd((__m256d)x);
#endif
    V y{};
    for (int l = 0; l < width<V>; ++l) set_lane(y, l, std::sqrt(lane(x, l)));
    return y;
}

// Whether a < b holds in every lane; false where either is NaN.
template <class V>
LDM_INLINE bool all_less(const V& a, const V& b) {
#if defined(__AVX512F__)
    if constexpr (width<V> == 8) return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_LT_OQ) == 0xff;
#elif defined(__AVX__)
    if constexpr (width<V> == 4) return _mm256_movemask_pd(_mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_LT_OQ)) == 0xf;
#endif
    bool all = true;
    for (int l = 0; l < width<V>; ++l) all = all && lane(a, l) < lane(b, l);
    return all;
}

// The natural logarithm of positive numbers, within two units in the last place: x = 2^e (1 + s) / (1 - s), and 2 artanh s as a series.
template <class V>
LDM_INLINE V log_of(const V& x) {
    if constexpr (width<V> == 1) {
        return std::log(x);
    }
#if defined(__GNUC__) || defined(__clang__)
    else {
        const Integers bits = (Integers)x;
        Integers exponent = (bits >> 52) - 1023;
        V mantissa = (V)((bits & 0x000fffffffffffffLL) | 0x3ff0000000000000LL);
        const Integers large = mantissa > spread<V>(1.4142135623730951);
        mantissa = large ? 0.5 * mantissa : mantissa;
        exponent -= large;
        // A small whole number as a double, by adding it to the last digits of 1.5 * 2^52.
        const V e = (V)(exponent + 0x4338000000000000LL) - 6755399441055744.0;
        const V s = (mantissa - 1.0) / (mantissa + 1.0), s2 = s * s;
        V series = spread<V>(2.0 / 21.0);
        for (int k = 9; k >= 1; --k) series = series * s2 + 2.0 / (2 * k + 1);
        // x - x: NaN where x is NaN or infinite, which the digits alone would not show.
        return e * 0.693147180369123816490 + (2.0 * s + (s * s2 * series + e * 1.90821492927058770002e-10)) + (x - x);
    }
#endif
}

// A square of kWidth rows and columns, turned over its diagonal.
template <class V>
LDM_INLINE void flip(V* x) {
#if defined(__GNUC__) || defined(__clang__)
    if constexpr (width<V> > 1) {
        for (int s = 1; s < width<V>; s *= 2) {
            for (int i = 0; i < width<V>; ++i) {
                if (i & s) continue;
                const V a = x[i], b = x[i + s];
                for (int l = 0; l < width<V>; ++l) {
                    x[i][l] = (l & s) ? b[l - s] : a[l];
                    x[i + s][l] = (l & s) ? b[l] : a[l + s];
                }
            }
        }
    }
#else
    (void)x;
#endif
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector) && defined(__AVX512F__)
#define LDM_SHUFFLE_8
#elif __has_builtin(__builtin_shufflevector)
#define LDM_SHUFFLE_4
#endif
#endif

#if defined(LDM_SHUFFLE_8)
template <>
LDM_INLINE void flip<Vector>(Vector* x) {
    Vector y[8];
    for (int i = 0; i < 8; i += 2) {
        y[i] = __builtin_shufflevector(x[i], x[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
        y[i + 1] = __builtin_shufflevector(x[i], x[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int k = 0; k < 8; ++k) {
        if (k & 2) continue;
        x[k] = __builtin_shufflevector(y[k], y[k + 2], 0, 1, 8, 9, 4, 5, 12, 13);
        x[k + 2] = __builtin_shufflevector(y[k], y[k + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
    for (int k = 0; k < 4; ++k) {
        const Vector a = x[k], b = x[k + 4];
        x[k] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
        x[k + 4] = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
    }
}
#elif defined(LDM_SHUFFLE_4)
template <>
LDM_INLINE void flip<Vector>(Vector* x) {
    Vector y[4];
    for (int i = 0; i < 4; i += 2) {
        y[i] = __builtin_shufflevector(x[i], x[i + 1], 0, 4, 2, 6);
        y[i + 1] = __builtin_shufflevector(x[i], x[i + 1], 1, 5, 3, 7);
    }
    for (int k = 0; k < 2; ++k) {
        const Vector a = y[k], b = y[k + 2];
        x[k] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
        x[k + 2] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
    }
}
#endif

// kWidth numbers that lie side by side.
template <class V, class Scalar>
LDM_INLINE V load(const Scalar* source) {
    if constexpr (width<V> == 1) {
        return static_cast<double>(*source);
    }
#if defined(__GNUC__) || defined(__clang__)
    else if constexpr (sizeof(Scalar) == sizeof(float)) {
        Floats x;
        std::memcpy(&x, source, sizeof x);
        return __builtin_convertvector(x, V);
    } else {
        V x;
        std::memcpy(&x, source, sizeof x);
        return x;
    }
#endif
}

template <class V, class Scalar>
LDM_INLINE void store(Scalar* target, const V& x) {
    if constexpr (width<V> == 1) {
        *target = static_cast<Scalar>(x);
    }
#if defined(__GNUC__) || defined(__clang__)
    else if constexpr (sizeof(Scalar) == sizeof(float)) {
        const Floats y = __builtin_convertvector(x, Floats);
        std::memcpy(target, &y, sizeof y);
    } else {
        std::memcpy(target, &x, sizeof x);
    }
#endif
}

// x_k = source[k] of `count` sequences, `stride` apart; 0 means that they share it. Lanes past `count` repeat the last sequence,
// so that they can never produce a NaN or an infinity of their own. x_k stands at x[k gap].
template <class V, class Scalar>
LDM_INLINE void read(V* LDM_RESTRICT x, const Scalar* source, Index length, Index stride, int count, Index gap = 1) {
    if (stride == 0) {
        for (Index i = 0; i < length; ++i) x[i * gap] = spread<V>(static_cast<double>(source[i]));
        return;
    }
    const Scalar* row[width<V>];
    for (int l = 0; l < width<V>; ++l) row[l] = source + (l < count ? l : count - 1) * stride;
    Index i = 0;
    for (; i + width<V> <= length; i += width<V>) {
        V square[width<V>];
        for (int l = 0; l < width<V>; ++l) square[l] = load<V>(row[l] + i);
        flip(square);
        for (int l = 0; l < width<V>; ++l) x[(i + l) * gap] = square[l];
    }
    for (; i < length; ++i) {
        for (int l = 0; l < width<V>; ++l) set_lane(x[i * gap], l, static_cast<double>(row[l][i]));
    }
}

template <class V, class Scalar>
LDM_INLINE void write(Scalar* target, const V* LDM_RESTRICT x, Index length, Index stride, int count, Index gap = 1) {
    Index i = 0;
    for (; i + width<V> <= length; i += width<V>) {
        V square[width<V>];
        for (int l = 0; l < width<V>; ++l) square[l] = x[(i + l) * gap];
        flip(square);
        if (count == width<V>) {  // the usual case: no questions lane by lane
            for (int l = 0; l < width<V>; ++l) store(target + l * stride + i, square[l]);
        } else {
            for (int l = 0; l < count; ++l) store(target + l * stride + i, square[l]);
        }
    }
    for (; i < length; ++i) {
        for (int l = 0; l < count; ++l) target[l * stride + i] = static_cast<Scalar>(lane(x[i * gap], l));
    }
}

template <class V>
LDM_INLINE void fill(V* x, Index size) {
    for (Index i = 0; i < size; ++i) x[i] = V{};
}

template <class V>
LDM_INLINE void copy(V* LDM_RESTRICT to, const V* LDM_RESTRICT from, Index size) {
    for (Index i = 0; i < size; ++i) to[i] = from[i];
}

template <class V>
LDM_INLINE void add(V* LDM_RESTRICT y, const V* LDM_RESTRICT x, Index size) {
    for (Index i = 0; i < size; ++i) y[i] += x[i];
}

LDM_INLINE Index smaller(Index a, Index b) { return a < b ? a : b; }

// Memory for numbers V, zeroed unless said otherwise, handed out piece by piece. (No std::vector here: code that other files would share is not safe, see above.)
template <class V>
class Room {
  public:
    explicit Room(Index size, bool zeroed = true) : data_(static_cast<V*>(::operator new((size + 1) * sizeof(V), std::align_val_t(64)))), next_(data_) {
        if (zeroed) fill(data_, size + 1);
    }
    Room(const Room&) = delete;
    Room& operator=(const Room&) = delete;
    ~Room() { ::operator delete(data_, std::align_val_t(64)); }

    V* take(Index size) {
        V* piece = next_;
        next_ += size;
        return piece;
    }

  private:
    V *data_, *next_;
};

}  // namespace LDM_ISA
}  // namespace ldm
