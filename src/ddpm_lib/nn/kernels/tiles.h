// What Winograd's convolutions share: the 2x2 tiles of maps, and the end of a gradient of weights.

#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "products.h"

namespace {

constexpr int64_t PLACES = 16;

struct Shape {
  int64_t n, h, w, tall, wide, tiles;
  Shape(int64_t n, int64_t h, int64_t w)
      : n(n), h(h), w(w), tall((h + 1) / 2), wide((w + 1) / 2), tiles(n * tall * wide) {}
};

template <typename T>
struct Buffer {  // aligned to a cache line
  std::unique_ptr<T[]> held;
  T* data;
  explicit Buffer(int64_t count) : held(new T[count + 16]) {
    data = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(held.get()) + 63) & ~uintptr_t(63));
  }
};

// Pointers to the size x size pixels of a tile from row y and column x on; outside of the map to zeros.
template <int SIZE, typename T>
inline void pixels_of(const T* x, const Shape& s, int64_t c, int64_t image, int64_t top, int64_t left, const T* zeros,
                      const T** found) {
  for (int i = 0; i < SIZE; ++i)
    for (int j = 0; j < SIZE; ++j) {
      const int64_t row = top + i, column = left + j;
      const bool inside = row >= 0 && row < s.h && column >= 0 && column < s.w;
      found[i * SIZE + j] = inside ? x + ((image * s.h + row) * s.w + column) * c : zeros;
    }
}

// G'dUG into the gradient of the weight, at the given strides, and that of the bias, from the sums of groups (16, c, k) with k
// sums of dY behind each; called by all threads.
inline void write_gradients(const float* sums, int64_t groups, int64_t size, int64_t c, int64_t k, const int64_t* strides,
                            float* of_weight, float* of_bias) {
#pragma omp for schedule(static)
  for (int64_t o = 0; o < k; ++o) {
    float total = 0;
    for (int64_t g = 0; g < groups; ++g) total += sums[g * size + PLACES * c * k + o];
    of_bias[o] = total;
  }
#pragma omp for schedule(static)
  for (int64_t panel = 0; panel < k; panel += PANEL)
    for (int64_t i = 0; i < c; ++i)
      for (int64_t half = 0; half < PANEL; half += LANES) {
        Floats q[4][4] = {};
        for (int64_t g = 0; g < groups; ++g)
          for (int p = 0; p < PLACES; ++p)
            q[p / 4][p % 4] += load(sums + g * size + p * c * k + panel * c + i * PANEL + half);
        Floats rows[3][4];
        for (int j = 0; j < 4; ++j) {
          rows[0][j] = q[0][j] + 0.5f * (q[1][j] + q[2][j]);
          rows[1][j] = 0.5f * (q[1][j] - q[2][j]);
          rows[2][j] = 0.5f * (q[1][j] + q[2][j]) + q[3][j];
        }
        for (int r = 0; r < 3; ++r) {
          const Floats three[3] = {rows[r][0] + 0.5f * (rows[r][1] + rows[r][2]), 0.5f * (rows[r][1] - rows[r][2]),
                                   0.5f * (rows[r][1] + rows[r][2]) + rows[r][3]};
          for (int j = 0; j < 3; ++j)
            for (int64_t l = 0; l < LANES; ++l)
              of_weight[(panel + half + l) * strides[0] + i * strides[1] + r * strides[2] + j * strides[3]] = three[j][l];
        }
      }
}

}  // namespace
