/* What lies between the products of a decoder's layers, each in one pass over memory: see fused.py, their one caller.
 *
 * bfloat16 is the upper half of a float32. Rows are contiguous; sums are float32. No function keeps state. A row's
 * result depends on that row only, whatever the number of threads.
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
#define MIN_PARALLEL 131072 /* values; fewer are done sooner than a second thread is woken */
#define LOG2_E 1.44269504f
#define LN_2 0.69314718f

/* of the functions' arguments: a library that was built before they changed must not be called */
const int eoseek_kernels_version = 1;

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

/* 2^k e^f with |f| <= ln 2 / 2, e^f by its series to the sixth power: relative error below 2e-7 */
static inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x > 87.0f ? 87.0f : x;
  float k = rintf(x * LOG2_E), f = (x * LOG2_E - k) * LN_2;
  float series = 1.0f + f * (1.0f + f * (1 / 2.0f + f * (1 / 6.0f + f * (1 / 24.0f + f * (1 / 120.0f + f / 720.0f)))));
  word power = {.bits = (uint32_t)((int32_t)k + 127) << 23};
  return series * power.value;
}

WIDE static void add_norm_rows(float *x, const bfloat16 *y, const float *weight, float eps, bfloat16 *out, long rows,
                               long size) {
  for (long row = 0; row < rows; row++, x += size, out += size) {
    float squares = 0;
    if (y) {
#pragma omp simd reduction(+ : squares)
      for (long i = 0; i < size; i++) {
        float sum = x[i] + widen(y[i]);
        x[i] = sum;
        squares += sum * sum;
      }
      y += size;
    } else {
#pragma omp simd reduction(+ : squares)
      for (long i = 0; i < size; i++) squares += x[i] * x[i];
    }
    float scale = 1.0f / sqrtf(squares / (float)size + eps);
    for (long i = 0; i < size; i++) out[i] = narrow(x[i] * scale * weight[i]);
  }
}

/* `half` is half a head; a head's i-th value turns with its (half + i)-th */
WIDE static void rotate_rows(bfloat16 *x, const float *cosine, const float *sine, const float *weight, float eps,
                             long rows, long stride, long heads, long half) {
  for (long row = 0; row < rows; row++, x += stride, cosine += half, sine += half)
    for (long head = 0; head < heads; head++) {
      bfloat16 *low = x + 2 * half * head, *high = low + half;
      float scale = 1.0f;
      if (weight) {
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (long i = 0; i < 2 * half; i++) squares += widen(low[i]) * widen(low[i]);
        scale = 1.0f / sqrtf(squares / (float)(2 * half) + eps);
      }
#pragma omp simd
      for (long i = 0; i < half; i++) {
        float a = widen(low[i]), b = widen(high[i]);
        if (weight) {
          a *= scale * weight[i];
          b *= scale * weight[half + i];
        }
        low[i] = narrow(a * cosine[i] - b * sine[i]);
        high[i] = narrow(b * cosine[i] + a * sine[i]);
      }
    }
}

WIDE static void gate_rows(const bfloat16 *x, bfloat16 *out, long rows, long size) {
  for (long row = 0; row < rows; row++, x += 2 * size, out += size)
#pragma omp simd
    for (long i = 0; i < size; i++) {
      float gate = widen(x[i]);
      out[i] = narrow(gate / (1.0f + exponential(-gate)) * widen(x[size + i]));
    }
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

/* x += y, where there is one; out = x / rms(x) * weight. x float32 and y, out bfloat16, all (rows, size) */
void eoseek_add_norm(float *x, const bfloat16 *y, const float *weight, float eps, bfloat16 *out, long rows, long size) {
#pragma omp parallel if (rows * size >= MIN_PARALLEL)
  {
    long first, count = share(rows, &first), skip;
    skip = first * size;
    add_norm_rows(x + skip, y ? y + skip : 0, weight, eps, out + skip, count, size);
  }
}

/* In place: the first `heads` heads of each row, normalised by `weight` (2 * half) where there is one, turned by the
 * angles of the row's position. x bfloat16 (rows, stride), cosine and sine float32 (rows, half) */
void eoseek_rotate(bfloat16 *x, const float *cosine, const float *sine, const float *weight, float eps, long rows,
                   long stride, long heads, long half) {
#pragma omp parallel if (rows * heads * half * 2 >= MIN_PARALLEL)
  {
    long first, count = share(rows, &first);
    rotate_rows(x + first * stride, cosine + first * half, sine + first * half, weight, eps, count, stride, heads,
                half);
  }
}

/* out = silu(left half of x) * right half. x bfloat16 (rows, 2 * size), out (rows, size) */
void eoseek_gate(const bfloat16 *x, bfloat16 *out, long rows, long size) {
#pragma omp parallel if (rows * size >= MIN_PARALLEL)
  {
    long first, count = share(rows, &first);
    gate_rows(x + first * 2 * size, out + first * size, count, size);
  }
}
