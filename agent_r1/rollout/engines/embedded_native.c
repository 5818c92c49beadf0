/* Kernels of a decode step, float32, for the embedded engine.
 *
 * Decoding a small model moves little data through many operations; here a token's head
 * normalisation, rotation, cache write and attention are one operation, and attention
 * reads exactly as many keys as the token sees. Each token is computed by one thread in a
 * fixed order, so results depend neither on the number of threads nor on the batch.
 *
 * Compiled without -ffast-math, which would change the floating-point mode of the process
 * that loads the library; the loops that may be reordered say so themselves. Minima and
 * maxima may drop a NaN (-ffinite-math-only); the residual stream carries it on.
 */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int64_t i64;

/* exp(x), relative error below 2e-7 for -87 < x < 88 and clamped outside (Cephes). */
static inline float exp_f32(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float y = p * r * r + r + 1.0f;
  const int32_t bits = ((int32_t)n + 127) << 23;
  float scale;
  memcpy(&scale, &bits, sizeof scale);
  return y * scale;
}

/* Normalise a head by its root mean square if it has a weight, then rotate it by its
 * position if there are angles (halves are the two coordinates of each plane). */
static inline void prepare_head(const float *x, const float *weight, float eps, const float *cosine,
                                const float *sine, i64 dim, float *out) {
  float factor = 1.0f;
  if (weight) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (i64 d = 0; d < dim; d++) sum += x[d] * x[d];
    factor = 1.0f / sqrtf(sum / (float)dim + eps);
  }
  const i64 half = dim / 2;
#pragma omp simd
  for (i64 d = 0; d < half; d++) {
    const float a = weight ? x[d] * factor * weight[d] : x[d];
    const float b = weight ? x[d + half] * factor * weight[d + half] : x[d + half];
    out[d] = cosine ? a * cosine[d] - b * sine[d] : a;
    out[d + half] = cosine ? b * cosine[d + half] + a * sine[d + half] : b;
  }
}

/* softmax(q K^T * scale) V over positions first .. end-1. */
static inline __attribute__((always_inline)) void attend_head(const float *q, const float *keys,
                                                              const float *values, i64 first,
                                                              i64 end, float scale, i64 dim,
                                                              float *scores, float *out) {
  float peak = -FLT_MAX;
  for (i64 j = first; j < end; j++) {
    const float *key = keys + j * dim;
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (i64 d = 0; d < dim; d++) sum += q[d] * key[d];
    scores[j] = sum * scale;
  }
#pragma omp simd reduction(max : peak)
  for (i64 j = first; j < end; j++) peak = scores[j] > peak ? scores[j] : peak;
  float total = 0.0f;
#pragma omp simd reduction(+ : total)
  for (i64 j = first; j < end; j++) {
    const float weight = exp_f32(scores[j] - peak);
    scores[j] = weight;
    total += weight;
  }
  float mixed[512];
  for (i64 d = 0; d < dim; d++) mixed[d] = 0.0f;
  for (i64 j = first; j < end; j++) {
    const float weight = scores[j];
    const float *value = values + j * dim;
#pragma omp simd
    for (i64 d = 0; d < dim; d++) mixed[d] += weight * value[d];
  }
  const float inverse = 1.0f / total;
#pragma omp simd
  for (i64 d = 0; d < dim; d++) out[d] = mixed[d] * inverse;
}

/* The common head sizes get loops of constant length. */
static void attend_one(const float *q, const float *keys, const float *values, i64 first, i64 end,
                       float scale, i64 dim, float *scores, float *out) {
  switch (dim) {
    case 32: attend_head(q, keys, values, first, end, scale, 32, scores, out); break;
    case 64: attend_head(q, keys, values, first, end, scale, 64, scores, out); break;
    case 128: attend_head(q, keys, values, first, end, scale, 128, scores, out); break;
    default: attend_head(q, keys, values, first, end, scale, dim, scores, out);
  }
}

/* Store keys and values of `tokens` tokens and attend for the first `attending` of them.
 *
 * query [tokens, heads, dim] is prepared in place; key, value [tokens, kv_heads, dim];
 * q_weight, k_weight [dim] or null; cosine, sine [tokens, dim] or null;
 * keys, values [slots, kv_heads, capacity, dim]; slot, position [tokens];
 * window 0 is none; out [tokens, heads, dim]. dim <= 512, even.
 */
void agent_r1_attend(float *query, const float *key, const float *value, const float *q_weight,
                     const float *k_weight, const float *cosine, const float *sine, float *keys,
                     float *values, const i64 *slot, const i64 *position, float *out, i64 tokens,
                     i64 attending, i64 heads, i64 kv_heads, i64 dim, i64 capacity, i64 window,
                     float scale, float eps, int threads) {
  const i64 group = heads / kv_heads;
#pragma omp parallel num_threads(threads) if (tokens > 4)
  {
    float *scores = malloc((size_t)capacity * sizeof(float));
#pragma omp for schedule(static)
    for (i64 t = 0; t < tokens; t++) {
      const float *c = cosine ? cosine + t * dim : 0, *s = sine ? sine + t * dim : 0;
      for (i64 h = 0; h < heads; h++) {
        float *q = query + (t * heads + h) * dim, prepared[512];
        prepare_head(q, q_weight, eps, c, s, dim, prepared);
        memcpy(q, prepared, (size_t)dim * sizeof(float));
      }
      for (i64 h = 0; h < kv_heads; h++) {
        const i64 from = (t * kv_heads + h) * dim;
        const i64 to = ((slot[t] * kv_heads + h) * capacity + position[t]) * dim;
        prepare_head(key + from, k_weight, eps, c, s, dim, keys + to);
        memcpy(values + to, value + from, (size_t)dim * sizeof(float));
      }
    }
#pragma omp for schedule(static)
    for (i64 t = 0; t < attending; t++) {
      const i64 end = position[t] + 1;
      const i64 first = window && end > window ? end - window : 0;
      for (i64 h = 0; h < heads; h++) {
        const i64 base = (slot[t] * kv_heads + h / group) * capacity * dim;
        const i64 at = (t * heads + h) * dim;
        attend_one(query + at, keys + base, values + base, first, end, scale, dim, scores,
                   out + at);
      }
    }
    free(scores);
  }
}

/* hidden += delta (unless null); out = rms_norm(hidden) * weight. All [rows, dim]. */
void agent_r1_add_norm(float *hidden, const float *delta, const float *weight, float *out,
                       i64 rows, i64 dim, float eps, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * dim > 16384)
  for (i64 r = 0; r < rows; r++) {
    float *x = hidden + r * dim, *y = out + r * dim, sum = 0.0f;
    if (delta) {
      const float *add = delta + r * dim;
#pragma omp simd
      for (i64 d = 0; d < dim; d++) x[d] += add[d];
    }
#pragma omp simd reduction(+ : sum)
    for (i64 d = 0; d < dim; d++) sum += x[d] * x[d];
    const float factor = 1.0f / sqrtf(sum / (float)dim + eps);
#pragma omp simd
    for (i64 d = 0; d < dim; d++) y[d] = x[d] * factor * weight[d];
  }
}

/* gate = silu(gate) * up, [count]. */
void agent_r1_silu_mul(float *gate, const float *up, i64 count, int threads) {
#pragma omp parallel for simd schedule(static) num_threads(threads) if (count > 32768)
  for (i64 i = 0; i < count; i++) gate[i] = gate[i] / (1.0f + exp_f32(-gate[i])) * up[i];
}
