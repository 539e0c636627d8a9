/* What products.c and attention.c share: rows of float32 as 16-bit integers, and sums of their products with AVX2.
 *
 * A row is scaled so that its largest value is its level, and rounded. Levels are such that a sum fits in 32 bits. What
 * is not a number makes the row's scale not a number.
 */
#ifndef EOSEEK_INTEGERS_H
#define EOSEEK_INTEGERS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define TILE_ROWS 6
#define TILE_COLUMNS 16 /* with the rows above, what sixteen registers hold */
#define MIN_PARALLEL_PRODUCTS 1048576 /* fewer are done sooner than a second thread is woken */

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_INTEGERS
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2,fma")))

/* By what x is multiplied so that its largest absolute value is the level; `scale` is the largest value / level */
AVX2 static inline float inverse_scale(const float *x, float level, long size, float *scale) {
  uint32_t largest = 0; /* of the bits without their sign, whose order is that of the values; a NaN's are the largest */
  for (long i = 0; i < size; i++) {
    uint32_t bits;
    memcpy(&bits, x + i, sizeof bits);
    bits &= 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  float value;
  memcpy(&value, &largest, sizeof value);
  *scale = value / level;
  float inverse = value > 0 ? level / value : 0;
  return inverse < 1e30f ? inverse : 0; /* what is as small as that is 0 */
}

/* out = x * level / largest absolute value; gives the largest value / level */
AVX2 static inline float round_row(const float *x, int16_t *out, float level, long size) {
  float scale, inverse = inverse_scale(x, level, size, &scale);
  for (long i = 0; i < size; i++) out[i] = (int16_t)(int32_t)rintf(x[i] * inverse);
  return scale;
}

/* Sums of `pairs` pairs of products: TILE_ROWS rows of x, `stride` apart, by TILE_COLUMNS columns, which lie as (pairs,
 * TILE_COLUMNS, 2) */
AVX2 static inline void tile(const int16_t *x, long stride, const int16_t *columns, long pairs,
                             __m256i sums[TILE_ROWS][2]) {
  __m256i zero = _mm256_setzero_si256();
  __m256i a0 = zero, b0 = zero, a1 = zero, b1 = zero, a2 = zero, b2 = zero, a3 = zero, b3 = zero, a4 = zero, b4 = zero,
          a5 = zero, b5 = zero;
  for (long k = 0; k < 2 * pairs; k += 2) {
    __m256i left = _mm256_loadu_si256((const __m256i *)(columns + TILE_COLUMNS * k));
    __m256i right = _mm256_loadu_si256((const __m256i *)(columns + TILE_COLUMNS * k + 16));
/* as an instruction in place: compilers move products ahead, and spill sums whose registers these then take */
#define ADD(sum, products) __asm__ volatile("vpaddd %1, %0, %0" : "+x"(sum) : "x"(products))
#define ROW(n)                                       \
  {                                                  \
    int32_t both;                                    \
    memcpy(&both, x + n * stride + k, sizeof both);  \
    __m256i pair = _mm256_set1_epi32(both);          \
    ADD(a##n, _mm256_madd_epi16(pair, left));        \
    ADD(b##n, _mm256_madd_epi16(pair, right));       \
  }
    ROW(0) ROW(1) ROW(2) ROW(3) ROW(4) ROW(5)
#undef ROW
#undef ADD
  }
  __m256i all[TILE_ROWS][2] = {{a0, b0}, {a1, b1}, {a2, b2}, {a3, b3}, {a4, b4}, {a5, b5}};
  memcpy(sums, all, sizeof all);
}
#endif
#endif
