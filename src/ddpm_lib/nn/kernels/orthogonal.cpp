// A step of Muon (Jordan et al. 2024) on matrices in float32: momentum with Nesterov's look ahead, five Newton-Schulz steps
// that make it orthogonal, and the update of the weight with decoupled decay, without copies in between.
//
// The factors of the iteration are polynomials of the first Gram matrix, so that they are multiplied among themselves, as
// squares of the shorter side. Rows are the first dimension of a weight, columns the rest in the order in which it lies in
// memory: another order of columns gives the same update in that order. Each matrix is one task: results do not depend on
// the threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "products.h"

namespace {

constexpr int ITERATIONS = 5;
constexpr float A = 3.4445f, B = -4.7750f, C = 2.0315f;
constexpr int64_t DEPTH = 256;  // of a product at a time, so that its factors stay in the cache

// m = ab of squares with `side` rows of `step` numbers, of which those beyond `side` are zeros.
void multiply(const float* a, const float* b, int64_t side, int64_t step, float* m) {
  for (int64_t j = 0; j < step; j += PANEL) products<false>(side, a, step, 1, b + j, step, side, m + j, step);
}

// x'x of x (rows, step).
void gram_of(const float* x, int64_t rows, int64_t side, int64_t step, float* m) {
  for (int64_t from = 0; from < rows; from += DEPTH) {
    const float* part = x + from * step;
    const int64_t depth = std::min(DEPTH, rows - from);
    for (int64_t j = 0; j < step; j += PANEL)
      if (from == 0)
        products<false>(side, part, 1, step, part + j, step, depth, m + j, step);
      else
        products<true>(side, part, 1, step, part + j, step, depth, m + j, step);
  }
}

// UV' of x = USV' to some 30 %, for x (rows, step) with at least as many rows as columns that are not zeros; into y.
void orthogonal(const float* x, int64_t rows, int64_t side, int64_t step, float* y) {
  const int64_t size = side * step;
  std::vector<float> held(5 * size);
  float *gram = held.data(), *factor = gram + size, *whole = factor + size, *one = whole + size, *two = one + size;
  gram_of(x, rows, side, step, gram);
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += static_cast<double>(gram[i]) * gram[i];
  const float norm = static_cast<float>(std::sqrt(sum)) + 1e-14f, part = 1 / norm;
  for (int64_t i = 0; i < size; ++i) gram[i] *= part;
  for (int n = 0; n < ITERATIONS; ++n) {
    multiply(gram, gram, side, step, factor);
    for (int64_t i = 0; i < size; ++i) factor[i] = B * gram[i] + C * factor[i];
    for (int64_t i = 0; i < side; ++i) factor[i * step + i] += A;
    if (n == 0) {
      std::copy(factor, factor + size, whole);
    } else {
      multiply(whole, factor, side, step, one);
      std::swap(whole, one);
    }
    if (n + 1 < ITERATIONS) {
      multiply(gram, factor, side, step, two);
      multiply(two, factor, side, step, gram);
    }
  }
  const float scale = 1 / std::sqrt(norm);
  for (int64_t i = 0; i < size; ++i) whole[i] *= scale;
  for (int64_t j = 0; j < step; j += PANEL) products<false>(rows, x, step, 1, whole + j, step, side, y + j, step);
}

}  // namespace

// weight = (1 - decay) weight - scale orthogonal(gradient + momentum (mean - gradient)), for `count` matrices of the given
// rows and columns; mean is the momentum, moved first.
extern "C" void orthogonal_step(int64_t count, const int64_t* all_rows, const int64_t* all_columns, int threads,
                                float* const* weights, const float* const* grads, float* const* means, double momentum,
                                const double* scales, double decay) {
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t k = 0; k < count; ++k) {
    const int64_t rows = all_rows[k], columns = all_columns[k];
    const bool wide = rows < columns;
    const int64_t side = std::min(rows, columns), length = std::max(rows, columns);
    const int64_t step = (side + PANEL - 1) / PANEL * PANEL;
    std::vector<float> x(length * step), y(length * step);
    const int64_t of_row = wide ? 1 : step, of_column = wide ? step : 1;
    const float ahead = momentum, still = 1 - momentum, keep = 1 - decay, scale = scales[k];
    for (int64_t r = 0; r < rows; ++r) {
      const float* g = grads[k] + r * columns;
      float *m = means[k] + r * columns, *to = x.data() + r * of_row;
      for (int64_t c = 0; c < columns; ++c) {
        m[c] += still * (g[c] - m[c]);
        to[c * of_column] = g[c] + ahead * (m[c] - g[c]);
      }
    }
    orthogonal(x.data(), length, side, step, y.data());
    for (int64_t r = 0; r < rows; ++r) {
      const float* from = y.data() + r * of_row;
      float* w = weights[k] + r * columns;
      for (int64_t c = 0; c < columns; ++c) w[c] = keep * w[c] - scale * from[c * of_column];
    }
  }
}
