// The gradient of the weight of 3x3 convolutions of stride 1 with zeros around the map, in bfloat16 and channels_last, by
// Winograd's F(2x2, 3x3) as in winograd.cpp, for processors that multiply pairs of bfloat16 (AVX-512 BF16) but not tiles of
// them. Pixels and gradients are transformed in float32, rounded to bfloat16 once more, and multiplied with sums in float32.
//
//   dU = V'(A dY A'),  V = B'dB,  dg = G'dU G
//
// What is multiplied lies in words of two tiles, because an instruction sums over pairs. Blocks and the order of sums follow
// from the shapes alone, as in winograd.cpp.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "tiles.h"

namespace {

constexpr int64_t TILE_PAIRS = 8192, LEAST = 48, LOW_ROWS = 8;  // pairs of tiles of a block, times channels, and at least
constexpr int64_t GROUPS = 8, LEAST_BLOCKS = 4, COLUMNS = 4 * PANEL;

inline int64_t pairs_of(int64_t c) { return std::max<int64_t>(TILE_PAIRS / c, LEAST); }

inline Floats wide(const uint16_t* p) {
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return reinterpret_cast<Floats>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

// Words of numbers of two tiles, each rounded to nearest, ties to even; NaN stays NaN.
inline __m512i paired(Floats first, Floats second) {
  const __m512bh both = _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(second), reinterpret_cast<__m512>(first));
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20,
                                         4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(both));
}
inline void store(__m512i v, uint32_t* p) { _mm512_storeu_si512(p, v); }

struct Place {
  int64_t image, row, column;
  Place(const Shape& s, int64_t t) : image(t / (s.tall * s.wide)), row(2 * (t / s.wide % s.tall)), column(2 * (t % s.wide)) {}
};

// B'd of the 4x4 pixels at p.
inline void half_transformed(const uint16_t* const* p, int64_t j, Floats m[4][4]) {
  for (int k = 0; k < 4; ++k) {
    const Floats a = wide(p[k] + j), b = wide(p[4 + k] + j), d = wide(p[8 + k] + j), e = wide(p[12 + k] + j);
    m[0][k] = a - d;
    m[1][k] = b + d;
    m[2][k] = d - b;
    m[3][k] = b - e;
  }
}

// B'dB of tiles first to last, at `out` (16, pairs, c) of words.
void transform_pixels(const uint16_t* x, const Shape& s, int64_t c, int64_t first, int64_t last, int64_t pairs,
                      const uint16_t* zeros, uint32_t* out) {
  for (int64_t t = first; t < last; t += 2) {
    const uint16_t *p[16], *q[16];
    const Place at(s, t);
    pixels_of<4>(x, s, c, at.image, at.row - 1, at.column - 1, zeros, p);
    if (t + 1 < last) {
      const Place next(s, t + 1);
      pixels_of<4>(x, s, c, next.image, next.row - 1, next.column - 1, zeros, q);
    } else {
      std::fill(q, q + 16, zeros);
    }
    uint32_t* to = out + (t - first) / 2 * c;
    for (int64_t j = 0; j < c; j += LANES) {
      Floats m[4][4], n[4][4];
      half_transformed(p, j, m);
      half_transformed(q, j, n);
      for (int i = 0; i < 4; ++i) {
        uint32_t* word = to + 4 * i * pairs * c + j;
        store(paired(m[i][0] - m[i][2], n[i][0] - n[i][2]), word);
        store(paired(m[i][1] + m[i][2], n[i][1] + n[i][2]), word + pairs * c);
        store(paired(m[i][2] - m[i][1], n[i][2] - n[i][1]), word + 2 * pairs * c);
        store(paired(m[i][1] - m[i][3], n[i][1] - n[i][3]), word + 3 * pairs * c);
      }
    }
  }
}

// A dY A' of tiles first to last and the channels of a panel, at `out` (16, pairs, PANEL) of words; dY is added to `sum`.
void transform_gradient(const uint16_t* dy, const Shape& s, int64_t k, int64_t panel, int64_t first, int64_t last, int64_t pairs,
                        const uint16_t* zeros, uint32_t* out, float* sum) {
  for (int64_t half = 0; half < PANEL; half += LANES) {
    Floats total = {};
    for (int64_t t = first; t < last; t += 2) {
      Floats rows[2][4][2] = {};
      for (int64_t u = t; u < std::min(t + 2, last); ++u) {
        const Place at(s, u);
        const uint16_t* p[4];
        pixels_of<2>(dy + panel + half, s, k, at.image, at.row, at.column, zeros, p);
        const Floats a = wide(p[0]), b = wide(p[1]), c = wide(p[2]), d = wide(p[3]);
        total += a + b + (c + d);
        const Floats of[4][2] = {{a, b}, {a + c, b + d}, {a - c, b - d}, {-c, -d}};
        std::copy(&of[0][0], &of[0][0] + 8, &rows[u - t][0][0]);
      }
      uint32_t* to = out + (t - first) / 2 * PANEL + half;
      for (int i = 0; i < 4; ++i) {
        const Floats *a = rows[0][i], *b = rows[1][i];
        uint32_t* word = to + 4 * i * pairs * PANEL;
        store(paired(a[0], b[0]), word);
        store(paired(a[0] + a[1], b[0] + b[1]), word + pairs * PANEL);
        store(paired(a[0] - a[1], b[0] - b[1]), word + 2 * pairs * PANEL);
        store(paired(-a[1], -b[1]), word + 3 * pairs * PANEL);
      }
    }
    store(load(sum + panel + half) + total, sum + panel + half);
  }
}

// m[r * PANEL + 0:PANEL] = sum over pairs of a[r + i * c] b[i * PANEL + 0:PANEL], or += that, for LOW_ROWS rows.
template <bool ADD>
inline void low_product(const uint32_t* a, int64_t c, const uint32_t* b, int64_t pairs, float* m) {
  __m512 x[LOW_ROWS][2] = {};
  for (int64_t i = 0; i < pairs; ++i) {
    const __m512bh u = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + i * PANEL));
    const __m512bh v = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + i * PANEL + LANES));
    for (int r = 0; r < LOW_ROWS; ++r) {
      const __m512bh f = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(a[i * c + r])));
      x[r][0] = _mm512_dpbf16_ps(x[r][0], f, u);
      x[r][1] = _mm512_dpbf16_ps(x[r][1], f, v);
    }
  }
  for (int r = 0; r < LOW_ROWS; ++r)
    for (int half = 0; half < 2; ++half) {
      float* at = m + r * PANEL + half * LANES;
      const Floats found = reinterpret_cast<Floats>(x[r][half]);
      store(ADD ? load(at) + found : found, at);
    }
}

}  // namespace

// How many channels are to be whole multiples of.
extern "C" int64_t low_gradient_panel() { return PANEL; }

// The gradients of the weight, at the given strides, and of the bias (k), from x (n, h, w, c) and dy (n, h, w, k).
extern "C" void low_weight_gradient(const uint16_t* x, const uint16_t* dy, int64_t n, int64_t h, int64_t w, int64_t c, int64_t k,
                                    const int64_t* strides, float* of_weight, float* of_bias, int threads) {
  const Shape s(n, h, w);
  const int64_t pairs = pairs_of(c), block = 2 * pairs, blocks = (s.tiles + block - 1) / block, size = PLACES * c * k + k;
  const int64_t groups = std::min(GROUPS, std::max<int64_t>(1, blocks / LEAST_BLOCKS)), chunks = (k + COLUMNS - 1) / COLUMNS;
  const Buffer<float> held(groups * size);
  float* sums = held.data;
#pragma omp parallel num_threads(threads)
  {
    const Buffer<uint32_t> v(PLACES * pairs * c), m(PLACES * pairs * PANEL);
    const std::vector<uint16_t> zeros(std::max(c, PANEL));
#pragma omp for schedule(static)
    for (int64_t task = 0; task < groups * chunks; ++task) {
      const int64_t g = task / chunks, from = task % chunks * COLUMNS, to = std::min(from + COLUMNS, k);
      float *sum = sums + g * size, *biases = sum + PLACES * c * k;
      std::fill(biases + from, biases + to, 0.0f);
      const int64_t begin = g * blocks / groups, end = (g + 1) * blocks / groups;
      for (int64_t b = begin; b < end; ++b) {
        const int64_t first = b * block, last = std::min(first + block, s.tiles), count = (last - first + 1) / 2;
        transform_pixels(x, s, c, first, last, pairs, zeros.data(), v.data);
        for (int64_t panel = from; panel < to; panel += PANEL) {
          transform_gradient(dy, s, k, panel, first, last, pairs, zeros.data(), m.data, biases);
          for (int64_t p = 0; p < PLACES; ++p)
            for (int64_t i = 0; i < c; i += LOW_ROWS) {
              const uint32_t *pixels = v.data + p * pairs * c + i, *gradient = m.data + p * pairs * PANEL;
              float* at = sum + p * c * k + panel * c + i * PANEL;
              if (b == begin)
                low_product<false>(pixels, c, gradient, count, at);
              else
                low_product<true>(pixels, c, gradient, count, at);
            }
        }
      }
    }
    write_gradients(sums, groups, size, c, k, strides, of_weight, of_bias);
  }
}
