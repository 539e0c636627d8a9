/* Products of float32 in 16-bit integers, for processors with AVX2, which multiplies twice as many of these at a time
 * and reads half as much of the weights: see fused.py, their one caller.
 *
 * Each row, and each output's weights, are scaled so that their largest value is LEVEL, and rounded: an error of one in
 * 3,662 of that. The sum of BLOCK such products fits in 32 bits, and blocks are added up as float32 in their order: a
 * row's result is the same bits whatever rows and threads are beside it. What is not a number makes the whole row of
 * results not a number.
 */
#include "integers.h"

#define BLOCK 640
#define LEVEL 1831
#define NEAR 131072 /* values of x that stay in the second cache while all weights pass by */

_Static_assert((int64_t)LEVEL * LEVEL * BLOCK <= INT32_MAX, "a block's sum fits");
_Static_assert(BLOCK % 2 == 0, "pairs do not cross blocks");

const int eoseek_product_rows = TILE_ROWS;
const int eoseek_product_columns = TILE_COLUMNS;

#ifdef HAS_INTEGERS
int eoseek_has_products(void) {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

/* Weights, float32 (columns, size), as eoseek_product takes them, and the scales of its outputs; of the same multiples */
AVX2 void eoseek_pack(const float *weights, int16_t *packed, float *scales, long columns, long size) {
#pragma omp parallel for schedule(static)
  for (long column = 0; column < columns; column++) {
    const float *x = weights + column * size;
    float inverse = inverse_scale(x, LEVEL, size, scales + column);
    int16_t *out = packed + column / TILE_COLUMNS * TILE_COLUMNS * size + column % TILE_COLUMNS * 2;
    for (long k = 0; k < size; k += 2, out += 2 * TILE_COLUMNS) {
      out[0] = (int16_t)(int32_t)rintf(x[k] * inverse);
      out[1] = (int16_t)(int32_t)rintf(x[k + 1] * inverse);
    }
  }
}

/* TILE_COLUMNS outputs of all rows */
AVX2 static void panel(const int16_t *x, const float *scales, const int16_t *weights, const float *weight_scales,
                       const float *bias, float *out, long rows, long size, long columns) {
  for (long row = 0; row < rows; row += TILE_ROWS, x += TILE_ROWS * size, out += TILE_ROWS * columns) {
    __m256 total[TILE_ROWS][2];
    memset(total, 0, sizeof total);
    for (long k = 0; k < size; k += BLOCK) {
      __m256i sums[TILE_ROWS][2];
      tile(x + k, size, weights + TILE_COLUMNS * k, (size - k < BLOCK ? size - k : BLOCK) / 2, sums);
      for (int n = 0; n < TILE_ROWS; n++)
        for (int half = 0; half < 2; half++)
          total[n][half] = _mm256_add_ps(total[n][half], _mm256_cvtepi32_ps(sums[n][half]));
    }
    for (int n = 0; n < TILE_ROWS && row + n < rows; n++)
      for (int half = 0; half < 2; half++) {
        __m256 scale = _mm256_mul_ps(_mm256_set1_ps(scales[row + n]), _mm256_loadu_ps(weight_scales + 8 * half));
        __m256 result = _mm256_mul_ps(total[n][half], scale);
        if (bias) result = _mm256_add_ps(result, _mm256_loadu_ps(bias + 8 * half));
        _mm256_storeu_ps(out + n * columns + 8 * half, result);
      }
  }
}

/* out = x weights^T + bias, where there is one.
 *
 * x float32 (rows, size) and out (rows, columns); weights int16, (columns / TILE_COLUMNS, size / 2, TILE_COLUMNS, 2);
 * weight_scales and bias float32 (columns); rounded and scales are room for x as integers, (rows, size) with rows up to
 * a multiple of TILE_ROWS, and for float32 (rows). size is even, columns a multiple of TILE_COLUMNS. */
void eoseek_product(const float *x, const int16_t *weights, const float *weight_scales, const float *bias,
                    int16_t *rounded, float *scales, float *out, long rows, long size, long columns) {
  long near = NEAR / size / TILE_ROWS * TILE_ROWS;
  near = near < TILE_ROWS ? TILE_ROWS : near;
#pragma omp parallel if (rows * size * columns >= MIN_PARALLEL_PRODUCTS)
  {
#pragma omp for schedule(static)
    for (long row = 0; row < rows; row++) scales[row] = round_row(x + row * size, rounded + row * size, LEVEL, size);
    for (long row = 0; row < rows; row += near) {
      long count = rows - row < near ? rows - row : near;
#pragma omp for schedule(static) nowait
      for (long column = 0; column < columns; column += TILE_COLUMNS)
        panel(rounded + row * size, scales + row, weights + column * size, weight_scales + column,
              bias ? bias + column : 0, out + row * columns + column, count, size, columns);
    }
  }
}
#else
int eoseek_has_products(void) { return 0; }
#endif
