// 3x3 convolutions of stride 1 with zeros around the map, in float32 and channels_last, by Winograd's F(2x2, 3x3) (Lavin & Gray
// 2016): of 4x4 input pixels and the kernel, both transformed, sixteen products per pair of channels give 2x2 output pixels,
// where the plain sum takes 36. Additions of halves only, so that the error stays that of float32.
//
//   V = B'dB (16, tiles, c),  U = GgG' (16, c, k),  M = VU,  Y = A'MA
//   gradient of the weight: dU = V'(A dY A'), dg = G'dU G; that of the input is the convolution with the turned kernel.
//
// Work is cut into blocks of tiles by the shapes alone and sums are taken in a fixed order, so that a pixel depends neither on
// the other images nor on the number of threads. Plain C++ without headers of torch, called through ctypes.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "tiles.h"

namespace {

constexpr int64_t TILE_FLOATS = 4096, LEAST = 48;
constexpr int64_t GROUPS = 8, LEAST_BLOCKS = 4, COLUMNS = 4 * PANEL;  // of what sums up a gradient

inline Floats gathered(const float* p, int64_t stride) {
  if (stride == 1) return load(p);
  Floats v;
  for (int64_t l = 0; l < LANES; ++l) v[l] = p[l * stride];
  return v;
}

// Tiles of a block, whose transformed pixels stay in the cache.
inline int64_t block_of(int64_t c) { return std::max<int64_t>(TILE_FLOATS / c, LEAST) / ROWS * ROWS; }

// B'dB of tiles first to last, at `out` (16, block, c).
void transform_pixels(const float* x, const Shape& s, int64_t c, int64_t first, int64_t last, int64_t block, const float* zeros,
                      float* out) {
  for (int64_t t = first; t < last; ++t) {
    const int64_t image = t / (s.tall * s.wide), row = t / s.wide % s.tall, column = t % s.wide;
    const float* p[16];
    pixels_of<4>(x, s, c, image, 2 * row - 1, 2 * column - 1, zeros, p);
    float* to = out + (t - first) * c;
    for (int64_t j = 0; j < c; j += LANES) {
      Floats m[4][4];
      for (int k = 0; k < 4; ++k) {
        const Floats a = load(p[k] + j), b = load(p[4 + k] + j), d = load(p[8 + k] + j), e = load(p[12 + k] + j);
        m[0][k] = a - d;
        m[1][k] = b + d;
        m[2][k] = d - b;
        m[3][k] = b - e;
      }
      for (int i = 0; i < 4; ++i) {
        float* at = to + 4 * i * block * c + j;
        store(m[i][0] - m[i][2], at);
        store(m[i][1] + m[i][2], at + block * c);
        store(m[i][2] - m[i][1], at + 2 * block * c);
        store(m[i][1] - m[i][3], at + 3 * block * c);
      }
    }
  }
}

// A'MA and the bias, of tiles first to last and the channels of a panel, from M (16, block, PANEL).
void write_pixels(const float* m, const float* bias, const Shape& s, int64_t k, int64_t panel, int64_t first, int64_t last,
                  int64_t block, float* y) {
  for (int64_t t = first; t < last; ++t) {
    const int64_t image = t / (s.tall * s.wide), row = 2 * (t / s.wide % s.tall), column = 2 * (t % s.wide);
    for (int64_t half = 0; half < PANEL; half += LANES) {
      const float* at = m + (t - first) * PANEL + half;
      const Floats b = bias ? load(bias + panel + half) : Floats{};
      Floats f[2][4];
      for (int j = 0; j < 4; ++j) {
        const Floats p = load(at + j * block * PANEL), q = load(at + (4 + j) * block * PANEL);
        const Floats r = load(at + (8 + j) * block * PANEL), u = load(at + (12 + j) * block * PANEL);
        f[0][j] = p + q + r;
        f[1][j] = q - r - u;
      }
      for (int i = 0; i < 2 && row + i < s.h; ++i) {
        float* to = y + ((image * s.h + row + i) * s.w + column) * k + panel + half;
        store(f[i][0] + f[i][1] + f[i][2] + b, to);
        if (column + 1 < s.w) store(f[i][1] - f[i][2] - f[i][3] + b, to + k);
      }
    }
  }
}

// A dY A' of tiles first to last and the channels of a panel, at `out` (16, block, PANEL); dY is added to `sum`.
void transform_gradient(const float* dy, const Shape& s, int64_t k, int64_t panel, int64_t first, int64_t last, int64_t block,
                        const float* zeros, float* out, float* sum) {
  for (int64_t half = 0; half < PANEL; half += LANES) {
    Floats total = {};
    for (int64_t t = first; t < last; ++t) {
      const int64_t image = t / (s.tall * s.wide), row = t / s.wide % s.tall, column = t % s.wide;
      const float* p[4];
      pixels_of<2>(dy + panel + half, s, k, image, 2 * row, 2 * column, zeros, p);
      const Floats a = load(p[0]), b = load(p[1]), c = load(p[2]), d = load(p[3]);
      total += a + b + (c + d);
      const Floats rows[4][2] = {{a, b}, {a + c, b + d}, {a - c, b - d}, {-c, -d}};
      float* to = out + (t - first) * PANEL + half;
      for (int i = 0; i < 4; ++i) {
        float* at = to + 4 * i * block * PANEL;
        store(rows[i][0], at);
        store(rows[i][0] + rows[i][1], at + block * PANEL);
        store(rows[i][0] - rows[i][1], at + 2 * block * PANEL);
        store(-rows[i][1], at + 3 * block * PANEL);
      }
    }
    store(load(sum + panel + half) + total, sum + panel + half);
  }
}

}  // namespace

// How many channels are to be whole multiples of.
extern "C" int64_t winograd_panel() { return PANEL; }

// U = GgG' at u (16, k / PANEL, c, PANEL). The weight (k, c, 3, 3) lies at the given strides.
extern "C" void winograd_weight(const float* g, int64_t c, int64_t k, const int64_t* strides, float* u, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t panel = 0; panel < k; panel += PANEL)
    for (int64_t i = 0; i < c; ++i)
      for (int64_t half = 0; half < PANEL; half += LANES) {
        const float* w = g + (panel + half) * strides[0] + i * strides[1];
        Floats m[4][3];
        for (int j = 0; j < 3; ++j) {
          const Floats a = gathered(w + j * strides[3], strides[0]);
          const Floats b = gathered(w + strides[2] + j * strides[3], strides[0]);
          const Floats d = gathered(w + 2 * strides[2] + j * strides[3], strides[0]);
          m[0][j] = a;
          m[1][j] = 0.5f * (a + d) + 0.5f * b;
          m[2][j] = 0.5f * (a + d) - 0.5f * b;
          m[3][j] = d;
        }
        float* to = u + panel * c + i * PANEL + half;
        for (int r = 0; r < 4; ++r) {
          const Floats a = m[r][0], b = 0.5f * m[r][1], d = m[r][2], e = 0.5f * (a + d);
          float* at = to + 4 * r * c * k;
          store(a, at);
          store(e + b, at + c * k);
          store(e - b, at + 2 * c * k);
          store(d, at + 3 * c * k);
        }
      }
}

// y (n, h, w, k) of x (n, h, w, c), the transformed weight and the bias (k) or null.
extern "C" void winograd_forward(const float* x, int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, const float* u,
                                 const float* bias, float* y, int threads) {
  const Shape s(n, h, w);
  const int64_t block = block_of(c), blocks = (s.tiles + block - 1) / block;
#pragma omp parallel num_threads(threads)
  {
    const Buffer<float> v(PLACES * block * c), m(PLACES * block * PANEL);
    const std::vector<float> zeros(c);
#pragma omp for schedule(static)
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = b * block, last = std::min(first + block, s.tiles), count = last - first;
      transform_pixels(x, s, c, first, last, block, zeros.data(), v.data);
      for (int64_t panel = 0; panel < k; panel += PANEL) {
        for (int64_t p = 0; p < PLACES; ++p)
          products<false>(count, v.data + p * block * c, c, 1, u + p * c * k + panel * c, PANEL, c, m.data + p * block * PANEL, PANEL);
        write_pixels(m.data, bias, s, k, panel, first, last, block, y);
      }
    }
  }
}

// The gradients of the weight, at the given strides, and of the bias (k), from x and dy (n, h, w, k). A task is a group of
// blocks and a few columns; the groups' sums are added in their order.
extern "C" void winograd_weight_gradient(const float* x, const float* dy, int64_t n, int64_t h, int64_t w, int64_t c, int64_t k,
                                         const int64_t* strides, float* of_weight, float* of_bias, int threads) {
  const Shape s(n, h, w);
  const int64_t block = block_of(c), blocks = (s.tiles + block - 1) / block, size = PLACES * c * k + k;
  const int64_t groups = std::min(GROUPS, std::max<int64_t>(1, blocks / LEAST_BLOCKS)), chunks = (k + COLUMNS - 1) / COLUMNS;
  const std::unique_ptr<float[]> held(new float[groups * size]);
  float* sums = held.get();
#pragma omp parallel num_threads(threads)
  {
    const Buffer<float> v(PLACES * block * c), m(PLACES * block * PANEL);
    const std::vector<float> zeros(std::max(c, PANEL));
#pragma omp for schedule(static)
    for (int64_t task = 0; task < groups * chunks; ++task) {
      const int64_t g = task / chunks, from = task % chunks * COLUMNS, to = std::min(from + COLUMNS, k);
      float *sum = sums + g * size, *biases = sum + PLACES * c * k;
      std::fill(biases + from, biases + to, 0.0f);
      const int64_t begin = g * blocks / groups, end = (g + 1) * blocks / groups;
      for (int64_t b = begin; b < end; ++b) {
        const int64_t first = b * block, last = std::min(first + block, s.tiles), count = last - first;
        transform_pixels(x, s, c, first, last, block, zeros.data(), v.data);
        for (int64_t panel = from; panel < to; panel += PANEL) {
          transform_gradient(dy, s, k, panel, first, last, block, zeros.data(), m.data, biases);
          for (int64_t p = 0; p < PLACES; ++p) {
            const float *pixels = v.data + p * block * c, *gradient = m.data + p * block * PANEL;
            float* at = sum + p * c * k + panel * c;
            if (b == begin)
              products<false>(c, pixels, 1, c, gradient, PANEL, count, at, PANEL);
            else
              products<true>(c, pixels, 1, c, gradient, PANEL, count, at, PANEL);
          }
        }
      }
    }
    write_gradients(sums, groups, size, c, k, strides, of_weight, of_bias);
  }
}
