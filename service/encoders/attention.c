/* Causal attention within each text of a row, in 16-bit integers, for processors with AVX2: see fused.py, its one
 * caller.
 *
 * Queries, keys and values are rounded a head's row at a time, weights a block of keys at a time, relative to the
 * largest of the block, so that a far greater one elsewhere costs them nothing; a value's scale is a part of its weight.
 * Blocks begin at a text's start, prefix included, and are added up as float32 in their order. So a token's result
 * depends on what is before it in its text only, and is the same bits wherever a prefix ends and whatever is beside the
 * text. What is not a number makes results that see it not a number.
 */
#include "integers.h"

#define KEYS 128 /* of a block */
#define WEIGHT_LEVEL 4095
#define VALUE_LEVEL 4095
#define MAX_SIZE 256 /* of a head */
#define ROWS 48 /* queries of all heads that share a key, which pass a block while it is in the first cache */
#define LOG2_E 1.44269504f

_Static_assert((int64_t)WEIGHT_LEVEL * VALUE_LEVEL * KEYS <= INT32_MAX, "a block's sum of values fits");
_Static_assert(KEYS % TILE_COLUMNS == 0 && ROWS % TILE_ROWS == 0, "whole tiles");

const int eoseek_attention_keys = KEYS;
const int eoseek_attention_max_size = MAX_SIZE;
const int eoseek_attention_max_rows = ROWS;

/* one of a call */
typedef struct {
  int64_t first;  /* row of its first token */
  int64_t length; /* tokens in the row */
  int64_t before; /* tokens of its prefix */
  int64_t prefix; /* which one, where there are such tokens */
  int64_t block;  /* number of its first block in the room for keys and values */
} text;

/* of one layer: float32 (key heads, tokens, size), heads `stride` values apart */
typedef struct {
  const float *keys, *values;
  int64_t stride;
} prefix;

#ifdef HAS_INTEGERS
/* 2^x, relative error below 3e-7; a NaN stays one */
AVX2 static inline __m256 power(__m256 x) {
  x = _mm256_max_ps(_mm256_set1_ps(-126.0f), x);
  __m256 k = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm256_sub_ps(x, k);
  __m256 series = _mm256_set1_ps(1.5403530e-4f);
#define TERM(factor) series = _mm256_fmadd_ps(series, f, _mm256_set1_ps(factor))
  TERM(1.3333558e-3f);
  TERM(9.6181291e-3f);
  TERM(5.5504109e-2f);
  TERM(2.4022651e-1f);
  TERM(6.9314718e-1f);
  TERM(1.0f);
#undef TERM
  __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(k), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(series, _mm256_castsi256_ps(exponent));
}

AVX2 static inline float largest(__m256 x) {
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

AVX2 static inline float sum(__m256 x) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* A text's keys and values of one head, as tile() takes them: a block's keys are (KEYS / TILE_COLUMNS, size / 2,
 * TILE_COLUMNS, 2), its values (size / TILE_COLUMNS, KEYS / 2, TILE_COLUMNS, 2) */
AVX2 static void pack(const text *t, const prefix *p, const float *keys, const float *values, long stride, long head,
                      long size, float level, int16_t *packed_keys, int16_t *packed_values, float *key_scales,
                      float *value_scales) {
  int16_t key[MAX_SIZE], pair[2][MAX_SIZE];
  long count = t->before + t->length, end = (count + TILE_COLUMNS - 1) / TILE_COLUMNS * TILE_COLUMNS;
  memset(pair, 0, sizeof pair);
  for (long i = 0; i < end; i++) {
    int16_t *block = packed_keys + i / KEYS * KEYS * size;
    int32_t *column = (int32_t *)(block + i % KEYS / TILE_COLUMNS * TILE_COLUMNS * size) + i % TILE_COLUMNS;
    if (i < count) {
      const float *k, *v;
      if (i < t->before) {
        k = p->keys + head * p->stride + i * size;
        v = p->values + head * p->stride + i * size;
      } else {
        long row = t->first + i - t->before;
        k = keys + row * stride + head * size;
        v = values + row * stride + head * size;
      }
      key_scales[i] = round_row(k, key, level, size);
      value_scales[i] = round_row(v, pair[i % 2], VALUE_LEVEL, size);
    } else { /* not attended to: any finite value does */
      memset(key, 0, sizeof key);
      memset(pair[i % 2], 0, sizeof pair[0]);
      key_scales[i] = value_scales[i] = 0;
    }
    for (long d = 0; d < size / 2; d++) memcpy(column + d * TILE_COLUMNS, key + 2 * d, sizeof *column);
    if (i % 2) {
      int16_t *rows = packed_values + i / KEYS * KEYS * size + i % KEYS / 2 * 2 * TILE_COLUMNS;
      for (long d = 0; d < size; d += TILE_COLUMNS, rows += KEYS * TILE_COLUMNS)
        for (long j = 0; j < TILE_COLUMNS; j++) {
          rows[2 * j] = pair[0][d + j];
          rows[2 * j + 1] = pair[1][d + j];
        }
    }
  }
}

/* what a query has seen so far */
typedef struct {
  float largest, sum; /* of its scores, of their powers relative to that */
} state;

/* Scores of a row to rounded weights of its block; gives what the row's former sums and the block's own are worth, in
 * `former` and `own`. Only the first `count` keys are seen. */
AVX2 static inline __attribute__((always_inline)) void weigh(float *scores, const float *value_scales, long count,
                                                             int16_t *weights, state *s, float *former, float *own) {
  const __m256 least = _mm256_set1_ps(-INFINITY), zero = _mm256_setzero_ps();
  const __m256 lane = _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7);
  __m256 high = least;
  for (long i = 0; i < count; i += 8) {
    __m256 is_seen = _mm256_cmp_ps(lane, _mm256_set1_ps((float)(count - i)), _CMP_LT_OQ);
    __m256 x = _mm256_loadu_ps(scores + i);
    if (count < KEYS) {
      x = _mm256_blendv_ps(least, x, is_seen);
      _mm256_storeu_ps(scores + i, x);
    }
    high = _mm256_max_ps(x, high);
  }
  float top = largest(high);
  __m256 tops = _mm256_set1_ps(top), sums = zero, weighed_sums = zero, weighed_high = zero;
  for (long i = 0; i < count; i += 8) {
    __m256 is_seen = _mm256_cmp_ps(lane, _mm256_set1_ps((float)(count - i)), _CMP_LT_OQ);
    __m256 x = power(_mm256_sub_ps(_mm256_loadu_ps(scores + i), tops));
    __m256 weighed = _mm256_mul_ps(x, _mm256_loadu_ps(value_scales + i));
    if (count < KEYS) {
      x = _mm256_and_ps(x, is_seen);
      weighed = _mm256_and_ps(weighed, is_seen);
    }
    sums = _mm256_add_ps(sums, x);
    weighed_sums = _mm256_add_ps(weighed_sums, weighed);
    weighed_high = _mm256_max_ps(weighed, weighed_high);
    _mm256_storeu_ps(scores + i, weighed);
  }
  /* the maximum may lose a NaN, the sum does not */
  float scale = largest(weighed_high) + 0 * sum(weighed_sums);
  float inverse = scale > 1e-30f ? WEIGHT_LEVEL / scale : 0;
  __m256 inverses = _mm256_set1_ps(inverse);
  long i = 0;
  for (; i < count; i += 8) {
    __m256i x = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(scores + i), inverses));
    __m128i eight = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storeu_si128((__m128i *)(weights + i), eight);
  }
  if (i < KEYS) memset(weights + i, 0, (KEYS - i) * sizeof *weights);
  float now = top > s->largest ? top : s->largest, both[8] = {s->largest - now, top - now};
  _mm256_storeu_ps(both, power(_mm256_loadu_ps(both)));
  s->sum = s->sum * both[0] + sum(sums) * both[1];
  s->largest = now;
  *former = both[0];
  *own = both[1] * scale / WEIGHT_LEVEL;
}

/* Some neighbouring tokens of a text, for the query heads that share one key head. queries and out are those of the
 * first of these tokens and heads, with `stride` and `out_stride` values from token to token. */
AVX2 static void attend(const float *queries, long stride, float *out, long out_stride, long position, long tokens,
                        long heads, long size, float level, float scaling, const int16_t *keys, const int16_t *values,
                        const float *key_scales, const float *value_scales) {
  int16_t rounded[ROWS * MAX_SIZE], weights[TILE_ROWS * KEYS];
  float scales[ROWS], attended[ROWS * MAX_SIZE], scores[TILE_ROWS][KEYS];
  state states[ROWS];
  long rows = tokens * heads, all = (rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
  for (long row = 0; row < rows; row++)
    scales[row] = scaling * LOG2_E *
                  round_row(queries + row / heads * stride + row % heads * size, rounded + row * size, level, size);
  memset(rounded + rows * size, 0, (all - rows) * size * sizeof *rounded);
  memset(attended, 0, all * size * sizeof *attended);
  memset(weights, 0, sizeof weights);
  for (long row = 0; row < all; row++) {
    states[row] = (state){-INFINITY, 0};
    if (row >= rows) scales[row] = 0;
  }
  for (long block = 0; block < position + tokens; block += KEYS) {
    const int16_t *block_keys = keys + block * size, *block_values = values + block * size;
    for (long row = 0; row < all; row += TILE_ROWS) {
      long last = row + TILE_ROWS - 1 < rows ? row + TILE_ROWS - 1 : rows - 1;
      long seen = position + last / heads + 1 - block; /* by the tile's last */
      if (seen <= 0) continue;
      seen = seen < KEYS ? seen : KEYS;
      __m256i sums[TILE_ROWS][2];
      for (long key = 0; key < seen; key += TILE_COLUMNS) {
        tile(rounded + row * size, size, block_keys + key * size, size / 2, sums);
        for (int half = 0; half < 2; half++) {
          __m256 key_scale = _mm256_loadu_ps(key_scales + block + key + 8 * half);
          for (int n = 0; n < TILE_ROWS; n++) {
            __m256 scale = _mm256_mul_ps(_mm256_set1_ps(scales[row + n]), key_scale);
            _mm256_storeu_ps(scores[n] + key + 8 * half, _mm256_mul_ps(_mm256_cvtepi32_ps(sums[n][half]), scale));
          }
        }
      }
      float former[TILE_ROWS], own[TILE_ROWS];
      for (int n = 0; n < TILE_ROWS; n++) {
        long count = row + n < rows ? position + (row + n) / heads + 1 - block : 0;
        former[n] = 1;
        own[n] = 0;
        if (count >= KEYS)
          weigh(scores[n], value_scales + block, KEYS, weights + n * KEYS, states + row + n, former + n, own + n);
        else if (count > 0)
          weigh(scores[n], value_scales + block, count, weights + n * KEYS, states + row + n, former + n, own + n);
        else
          memset(weights + n * KEYS, 0, KEYS * sizeof *weights);
      }
      for (long d = 0; d < size; d += TILE_COLUMNS) {
        tile(weights, KEYS, block_values + d * KEYS, (seen + 1) / 2, sums);
        for (int n = 0; n < TILE_ROWS; n++)
          for (int half = 0; half < 2; half++) {
            float *sum = attended + (row + n) * size + d + 8 * half;
            __m256 added = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[n][half]), _mm256_set1_ps(own[n]));
            _mm256_storeu_ps(sum, _mm256_fmadd_ps(_mm256_loadu_ps(sum), _mm256_set1_ps(former[n]), added));
          }
      }
    }
  }
  for (long row = 0; row < rows; row++) {
    float inverse = 1 / states[row].sum, *result = out + row / heads * out_stride + row % heads * size;
    for (long d = 0; d < size; d++) result[d] = attended[row * size + d] * inverse;
  }
}

/* out = softmax(scaling * queries keys^T) values, for each text and head, of what is not behind the query.
 *
 * qkv float32 (rows, query heads, then key heads, then value heads, of `size`), out float32 (rows, query heads, size);
 * texts int64 (num_texts, 5) and prefixes int64 (.., 3) as above. packed int16 (2, blocks, key heads, KEYS * size) and
 * scales float32 (2, blocks, key heads, KEYS) are room. size is a multiple of TILE_COLUMNS and at most MAX_SIZE, query
 * heads a multiple of key heads, at most ROWS times it. */
void eoseek_attend(const float *qkv, const void *texts, const void *prefixes, int16_t *packed, float *scales,
                   float *out, long num_texts, long blocks, long query_heads, long key_heads, long size,
                   float scaling) {
  const text *first = texts;
  const prefix *known = prefixes;
  long heads = query_heads / key_heads, tokens = ROWS / heads, stride = (query_heads + 2 * key_heads) * size;
  const float *keys = qkv + query_heads * size, *values = keys + key_heads * size;
  int16_t *packed_values = packed + blocks * key_heads * KEYS * size;
  float *value_scales = scales + blocks * key_heads * KEYS, level = floorf(sqrtf((float)INT32_MAX / (float)size)) - 1;
  double products = 0;
  for (const text *t = first; t < first + num_texts; t++)
    products += 2.0 * (double)((t->before + t->length) * t->length * query_heads * size);
#pragma omp parallel if (products >= MIN_PARALLEL_PRODUCTS)
  {
#pragma omp for collapse(2) schedule(dynamic)
    for (long i = 0; i < num_texts; i++)
      for (long head = 0; head < key_heads; head++) {
        const text *t = first + i;
        long end = i + 1 < num_texts ? t[1].block : blocks;
        long at = (t->block * key_heads + head * (end - t->block)) * KEYS;
        pack(t, known + t->prefix, keys, values, stride, head, size, level, packed + at * size,
             packed_values + at * size, scales + at, value_scales + at);
      }
    for (const text *t = first; t < first + num_texts; t++) {
      long end = t + 1 < first + num_texts ? t[1].block : blocks, chunks = (t->length + tokens - 1) / tokens;
/* the last first: they take longest */
#pragma omp for collapse(2) schedule(dynamic) nowait
      for (long chunk = chunks - 1; chunk >= 0; chunk--)
        for (long head = 0; head < key_heads; head++) {
          long at = (t->block * key_heads + head * (end - t->block)) * KEYS, token = chunk * tokens;
          long row = t->first + token, count = t->length - token < tokens ? t->length - token : tokens;
          attend(qkv + row * stride + head * heads * size, stride, out + (row * query_heads + head * heads) * size,
                 query_heads * size, t->before + token, count, heads, size, level, scaling, packed + at * size,
                 packed_values + at * size, scales + at, value_scales + at);
        }
    }
  }
}
#endif
