// What a step of training does to all weights, each number read and written once: the norm of the gradient, Adam, and all
// moving averages in one pass. Lists of tensors come as arrays of pointers and sizes; the numbers of a list lie in the same
// order in memory. Work is cut into blocks by the sizes alone, so that results do not depend on the threads. Gradients are float
// or, where `low` of a tensor is 1, bfloat16.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t BLOCK = 1 << 14;
constexpr int64_t CHUNK = 512;  // divides BLOCK

struct Piece {
  int64_t tensor, from, to;
};

std::vector<Piece> pieces_of(int64_t count, const int64_t* sizes) {
  std::vector<Piece> pieces;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t from = 0; from < sizes[i]; from += BLOCK)
      pieces.push_back({i, from, from + BLOCK < sizes[i] ? from + BLOCK : sizes[i]});
  return pieces;
}

// Numbers from .. from + n of a gradient: where they lie, or widened into `room`.
const float* widened(const void* x, bool low, int64_t from, int64_t n, float* room) {
  if (!low) return static_cast<const float*>(x) + from;
  const uint16_t* half = static_cast<const uint16_t*>(x) + from;
  uint32_t bits[CHUNK];
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) bits[i] = static_cast<uint32_t>(half[i]) << 16;
  std::memcpy(room, bits, n * sizeof(float));
  return room;
}

// Rounds to the nearest bfloat16, ties to even; NaN stays NaN.
void narrow(const float* x, int64_t n, uint16_t* to) {
  uint32_t bits[CHUNK];
  std::memcpy(bits, x, n * sizeof(float));
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t u = bits[i], nan = (u & 0x7fffffffu) > 0x7f800000u;
    to[i] = nan ? 0x7fc0u : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  }
}

}  // namespace

// The sum of squares of all numbers: in float over a block, where 64 sums run side by side, and in double over the blocks.
extern "C" double sum_of_squares(int64_t count, const int64_t* sizes, int threads, const void* const* x,
                                 const unsigned char* low) {
  const std::vector<Piece> pieces = pieces_of(count, sizes);
  std::vector<double> sums(pieces.size());
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t k = 0; k < static_cast<int64_t>(pieces.size()); ++k) {
    const Piece& p = pieces[k];
    float lanes[64] = {}, room[CHUNK];
    double sum = 0;
    for (int64_t from = p.from; from < p.to; from += CHUNK) {
      const int64_t n = std::min(CHUNK, p.to - from);
      const float* v = widened(x[p.tensor], low[p.tensor], from, n, room);
      int64_t i = 0;
      for (; i + 64 <= n; i += 64)
#pragma omp simd
        for (int j = 0; j < 64; ++j) lanes[j] += v[i + j] * v[i + j];
      for (; i < n; ++i) sum += static_cast<double>(v[i]) * v[i];
    }
    for (float lane : lanes) sum += lane;
    sums[k] = sum;
  }
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

// Kingma & Ba 2015, with the gradient times `scale`; decay is decoupled (Loshchilov & Hutter 2019) or L2. `first` and `second`
// are 1 - beta^t of each tensor. Where `narrowed` of a tensor is not null, the new weights are written there too, as bfloat16.
extern "C" void adam(int64_t count, const int64_t* sizes, int threads, float* const* weight, const void* const* grad,
                     float* const* mean, float* const* square, const unsigned char* low, uint16_t* const* narrowed,
                     const double* first, const double* second, double scale, double rate, double beta1, double beta2,
                     double eps, double decay, int decoupled) {
  const std::vector<Piece> pieces = pieces_of(count, sizes);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t k = 0; k < static_cast<int64_t>(pieces.size()); ++k) {
    const Piece& p = pieces[k];
    const float s = scale, b1 = 1 - beta1, b2 = beta2, c2 = 1 - beta2, e = eps, l2 = decoupled ? 0 : decay;
    const float keep = decoupled ? 1 - rate * decay : 1, step = rate / first[p.tensor];
    const float root = 1 / std::sqrt(second[p.tensor]);
    float room[CHUNK];
    for (int64_t from = p.from; from < p.to; from += CHUNK) {
      const int64_t n = std::min(CHUNK, p.to - from);
      const float* g = widened(grad[p.tensor], low[p.tensor], from, n, room);
      float *w = weight[p.tensor] + from, *m = mean[p.tensor] + from, *v = square[p.tensor] + from;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        const float d = g[i] * s + l2 * w[i];
        m[i] += b1 * (d - m[i]);
        v[i] = b2 * v[i] + c2 * d * d;
        w[i] = keep * w[i] - step * (m[i] / (std::sqrt(v[i]) * root + e));
      }
      if (narrowed[p.tensor] != nullptr) narrow(w, n, narrowed[p.tensor] + from);
    }
  }
}

// a += weight (x - a) for each of several lists a: `target` has one list after the other.
extern "C" void follow(int64_t count, const int64_t* sizes, int threads, const float* const* x, int64_t averages,
                       float* const* target, const double* weight) {
  const std::vector<Piece> pieces = pieces_of(count, sizes);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t k = 0; k < static_cast<int64_t>(pieces.size()); ++k) {
    const Piece& p = pieces[k];
    const float* v = x[p.tensor];
    for (int64_t n = 0; n < averages; ++n) {
      float* a = target[n * count + p.tensor];
      const float near = weight[n], far = 1 - weight[n];
      if (near < 0.5f)
#pragma omp simd
        for (int64_t i = p.from; i < p.to; ++i) a[i] += near * (v[i] - a[i]);
      else  // exact where the weight is 1
#pragma omp simd
        for (int64_t i = p.from; i < p.to; ++i) a[i] = v[i] - far * (v[i] - a[i]);
    }
  }
}
