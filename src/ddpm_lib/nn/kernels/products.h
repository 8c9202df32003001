// Products of small matrices in float32 whose factors lie in the cache, as sums over registers: what Winograd's convolution and
// orthogonal updates are made of. The order of a sum does not depend on how many rows are asked for.

#pragma once

#include <cstdint>
#include <cstring>

namespace {

#if defined(__AVX512F__)
constexpr int BYTES = 64, ROWS = 12;
#else
constexpr int BYTES = 32, ROWS = 6;
#endif
typedef float Floats __attribute__((vector_size(BYTES)));
constexpr int64_t LANES = BYTES / 4, PANEL = 2 * LANES;

inline Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(Floats v, float* p) { std::memcpy(p, &v, sizeof v); }

// m[r * step + 0:PANEL] = sum over i < depth of a[r * across + i * along] b[i * stride + 0:PANEL], or += that.
template <int R, bool ADD>
inline void product(const float* a, int64_t across, int64_t along, const float* b, int64_t stride, int64_t depth, float* m,
                    int64_t step) {
  Floats x[R][2] = {};
  for (int64_t i = 0; i < depth; ++i) {
    const Floats u = load(b + i * stride), v = load(b + i * stride + LANES);
    for (int r = 0; r < R; ++r) {
      const float f = a[r * across + i * along];
      x[r][0] += f * u;
      x[r][1] += f * v;
    }
  }
  for (int r = 0; r < R; ++r)
    for (int k = 0; k < 2; ++k) {
      float* at = m + r * step + k * LANES;
      store(ADD ? load(at) + x[r][k] : x[r][k], at);
    }
}
template <bool ADD, int R = ROWS>
inline void last_rows(int64_t rows, const float* a, int64_t across, int64_t along, const float* b, int64_t stride, int64_t depth,
                      float* m, int64_t step) {
  if (rows == R)
    product<R, ADD>(a, across, along, b, stride, depth, m, step);
  else if constexpr (R > 1)
    last_rows<ADD, R - 1>(rows, a, across, along, b, stride, depth, m, step);
}

// The same for any number of rows.
template <bool ADD>
inline void products(int64_t rows, const float* a, int64_t across, int64_t along, const float* b, int64_t stride, int64_t depth,
                     float* m, int64_t step) {
  int64_t r = 0;
  for (; r + ROWS <= rows; r += ROWS) product<ROWS, ADD>(a + r * across, across, along, b, stride, depth, m + r * step, step);
  if (r < rows) last_rows<ADD>(rows - r, a + r * across, across, along, b, stride, depth, m + r * step, step);
}

}  // namespace
