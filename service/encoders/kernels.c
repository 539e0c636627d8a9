/* What lies between the products of a decoder's layers, each in one pass over memory: see fused.py, their one caller.
 *
 * Products give and take bfloat16, the upper half of a float32, or with `is_whole` float32 itself. Rows are contiguous;
 * sums are float32. No function keeps state. A row's result depends on that row only, whatever the number of threads.
 */
#include <math.h>
#include <stdint.h>

#ifdef _OPENMP
#include <omp.h>
#endif

/* one binary for every x86-64 processor: the loader takes the widest version that this one runs */
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && __GNUC__ >= 12
#define WIDE __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#elif defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define WIDE
#endif
/* into the function that names `is_whole`, so that each format has a loop of its own */
#define INLINE static inline __attribute__((always_inline))
#define MIN_PARALLEL 131072 /* values; fewer are done sooner than a second thread is woken */
#define LOG2_E 1.44269504f
#define LN_2 0.69314718f

/* of the functions' arguments, here, in products.c and in attention.c, and of the layout of weights: a library that was
 * built before they changed must not be called */
const int eoseek_kernels_version = 4;

typedef uint16_t bfloat16;
typedef union {
  uint32_t bits;
  float value;
} word;

static inline float widen(bfloat16 x) {
  word w = {.bits = (uint32_t)x << 16};
  return w.value;
}

/* to the nearest, ties to even */
static inline bfloat16 narrow(float x) {
  word w = {.value = x};
  return (bfloat16)((w.bits + 0x7fffu + ((w.bits >> 16) & 1u)) >> 16);
}

INLINE float get(const void *x, long i, int is_whole) {
  return is_whole ? ((const float *)x)[i] : widen(((const bfloat16 *)x)[i]);
}

INLINE void put(void *x, long i, float value, int is_whole) {
  if (is_whole)
    ((float *)x)[i] = value;
  else
    ((bfloat16 *)x)[i] = narrow(value);
}

INLINE char *skip(const void *x, long values, int is_whole) {
  return (char *)x + values * (is_whole ? sizeof(float) : sizeof(bfloat16));
}

/* 2^k e^f with |f| <= ln 2 / 2, e^f by its series to the sixth power: relative error below 2e-7 */
static inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x > 87.0f ? 87.0f : x;
  float k = rintf(x * LOG2_E), f = (x * LOG2_E - k) * LN_2;
  float series = 1.0f + f * (1.0f + f * (1 / 2.0f + f * (1 / 6.0f + f * (1 / 24.0f + f * (1 / 120.0f + f / 720.0f)))));
  word power = {.bits = (uint32_t)((int32_t)k + 127) << 23};
  return series * power.value;
}

INLINE void add_norm(float *x, const void *y, const float *weight, float eps, void *out, long rows, long size,
                     int is_whole) {
  for (long row = 0; row < rows; row++, x += size, out = skip(out, size, is_whole)) {
    float squares = 0;
    if (y) {
#pragma omp simd reduction(+ : squares)
      for (long i = 0; i < size; i++) {
        float sum = x[i] + get(y, i, is_whole);
        x[i] = sum;
        squares += sum * sum;
      }
      y = skip(y, size, is_whole);
    } else {
#pragma omp simd reduction(+ : squares)
      for (long i = 0; i < size; i++) squares += x[i] * x[i];
    }
    float scale = 1.0f / sqrtf(squares / (float)size + eps);
#pragma omp simd
    for (long i = 0; i < size; i++) put(out, i, x[i] * scale * weight[i], is_whole);
  }
}

/* `half` is half a head; a head's i-th value turns with its (half + i)-th */
INLINE void rotate(void *x, const float *cosine, const float *sine, const float *weight, float eps, long rows,
                   long stride, long heads, long half, int is_whole) {
  for (long row = 0; row < rows; row++, x = skip(x, stride, is_whole), cosine += half, sine += half)
    for (long head = 0; head < heads; head++) {
      void *low = skip(x, 2 * half * head, is_whole), *high = skip(low, half, is_whole);
      float scale = 1.0f;
      if (weight) {
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (long i = 0; i < 2 * half; i++) squares += get(low, i, is_whole) * get(low, i, is_whole);
        scale = 1.0f / sqrtf(squares / (float)(2 * half) + eps);
      }
#pragma omp simd
      for (long i = 0; i < half; i++) {
        float a = get(low, i, is_whole), b = get(high, i, is_whole);
        if (weight) {
          a *= scale * weight[i];
          b *= scale * weight[half + i];
        }
        put(low, i, a * cosine[i] - b * sine[i], is_whole);
        put(high, i, b * cosine[i] + a * sine[i], is_whole);
      }
    }
}

INLINE void gate(const void *x, void *out, long rows, long size, int is_whole) {
  for (long row = 0; row < rows; row++, x = skip(x, 2 * size, is_whole), out = skip(out, size, is_whole))
#pragma omp simd
    for (long i = 0; i < size; i++) {
      float value = get(x, i, is_whole);
      put(out, i, value / (1.0f + exponential(-value)) * get(x, size + i, is_whole), is_whole);
    }
}

WIDE static void add_norm_rows(float *x, const void *y, const float *weight, float eps, void *out, long rows, long size,
                               int is_whole) {
  if (is_whole)
    add_norm(x, y, weight, eps, out, rows, size, 1);
  else
    add_norm(x, y, weight, eps, out, rows, size, 0);
}

WIDE static void rotate_rows(void *x, const float *cosine, const float *sine, const float *weight, float eps, long rows,
                             long stride, long heads, long half, int is_whole) {
  if (is_whole)
    rotate(x, cosine, sine, weight, eps, rows, stride, heads, half, 1);
  else
    rotate(x, cosine, sine, weight, eps, rows, stride, heads, half, 0);
}

WIDE static void gate_rows(const void *x, void *out, long rows, long size, int is_whole) {
  if (is_whole)
    gate(x, out, rows, size, 1);
  else
    gate(x, out, rows, size, 0);
}

/* the rows that a thread takes, from `first`; its caller has `threads` of them */
static long share(long rows, long *first) {
#ifdef _OPENMP
  long threads = omp_get_num_threads(), thread = omp_get_thread_num();
#else
  long threads = 1, thread = 0;
#endif
  *first = rows * thread / threads;
  return rows * (thread + 1) / threads - *first;
}

/* x += y, where there is one; out = x / rms(x) * weight. x float32, all (rows, size) */
void eoseek_add_norm(float *x, const void *y, const float *weight, float eps, void *out, long rows, long size,
                     int is_whole) {
#pragma omp parallel if (rows * size >= MIN_PARALLEL)
  {
    long first, count = share(rows, &first), before = first * size;
    add_norm_rows(x + before, y ? skip(y, before, is_whole) : 0, weight, eps, skip(out, before, is_whole), count, size,
                  is_whole);
  }
}

/* In place: the first `heads` heads of each row, normalised by `weight` (2 * half) where there is one, turned by the
 * angles of the row's position. x (rows, stride), cosine and sine float32 (rows, half) */
void eoseek_rotate(void *x, const float *cosine, const float *sine, const float *weight, float eps, long rows,
                   long stride, long heads, long half, int is_whole) {
#pragma omp parallel if (rows * heads * half * 2 >= MIN_PARALLEL)
  {
    long first, count = share(rows, &first), before = first * half;
    rotate_rows(skip(x, first * stride, is_whole), cosine + before, sine + before, weight, eps, count, stride, heads,
                half, is_whole);
  }
}

/* out = silu(left half of x) * right half. x (rows, 2 * size), out (rows, size) */
void eoseek_gate(const void *x, void *out, long rows, long size, int is_whole) {
#pragma omp parallel if (rows * size >= MIN_PARALLEL)
  {
    long first, count = share(rows, &first);
    gate_rows(skip(x, first * 2 * size, is_whole), skip(out, first * size, is_whole), count, size, is_whole);
  }
}
