// Group normalisation, a per-sample affine map and SiLU in one pass over memory, for pixels whose channels lie side by side
// (channels_last). Plain C++ without any header of torch: compiled in seconds on first use, called through ctypes.
//
//   v = x + add            add (n, c) or null
//   u = (v - mean_g) * rstd_g,   z = u * gamma + beta,   y = z * sigmoid(z) or z
//
// gamma and beta are (n, c), or (c) with stride 0. Sums are taken per channel over the rows, then over the channels of a
// group, in an order that does not depend on the number of threads. The mean is subtracted before squaring (two passes over
// a block that is in cache), because E[x^2] - E[x]^2 loses digits.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct bf16 {
  uint16_t bits;
};

inline float widen(bf16 v) {
  uint32_t u = static_cast<uint32_t>(v.bits) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline float widen(float v) { return v; }
inline double widen(double v) { return v; }

inline void narrow(float f, bf16& out) {  // to nearest, ties to even; NaN stays NaN
  uint32_t u;
  std::memcpy(&u, &f, 4);
  uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  out.bits = static_cast<uint16_t>(f == f ? rounded : 0x7fc0u);
}
inline void narrow(float f, float& out) { out = f; }
inline void narrow(double f, double& out) { out = f; }

// exp(x) for float to 1e-7, written so that compilers vectorise it: 2^n * p(f) with n = round(x / ln 2). The comparisons
// are such that NaN passes through.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  float n = std::nearbyint(x * 1.44269504f);
  float f = x - n * 0.693359375f;
  f -= n * -2.12194440e-4f;
  float p = 1.9875691e-4f;
  p = p * f + 1.3981999e-3f;
  p = p * f + 8.3334519e-3f;
  p = p * f + 4.1665796e-2f;
  p = p * f + 1.6666665e-1f;
  p = p * f + 0.5f;
  p = p * f * f + f + 1.0f;
  int32_t e = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &e, 4);
  return p * power;
}
inline double exponential(double x) { return std::exp(x); }

template <typename A>
inline A sigmoid(A z) {
  return A(1) / (A(1) + exponential(-z));
}

template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

struct Shape {
  int64_t n, rows, channels, groups, chunks;
};

// One task: a sample and a run of whole groups.
struct Task {
  int64_t sample, first, width, groups;
};

inline Task task_of(const Shape& s, int64_t index) {
  int64_t sample = index / s.chunks, chunk = index % s.chunks;
  int64_t size = s.channels / s.groups;
  int64_t g0 = chunk * s.groups / s.chunks, g1 = (chunk + 1) * s.groups / s.chunks;
  return {sample, g0 * size, (g1 - g0) * size, g1 - g0};
}

template <typename T, typename A>
void forward_task(const Shape& s, const Task& k, const T* x, const A* add, const A* gamma, const A* beta, int64_t stride,
                  double eps, bool act, T* y, A* mean, A* rstd) {
  const int64_t c = s.channels, w = k.width, size = s.channels / s.groups;
  std::vector<A> buffer(4 * w, A(0));
  A *sum = buffer.data(), *shift = sum + w, *scale = shift + w, *offset = scale + w;
  const T* xs = x + k.sample * s.rows * c + k.first;
  T* ys = y + k.sample * s.rows * c + k.first;
  const int64_t at = k.sample * c + k.first, par = k.sample * stride + k.first;
  int64_t r = 0;
  for (; r + 4 <= s.rows; r += 4) {
    const T *p0 = xs + r * c, *p1 = p0 + c, *p2 = p1 + c, *p3 = p2 + c;
#pragma omp simd
    for (int64_t j = 0; j < w; ++j) sum[j] += (widen(p0[j]) + widen(p1[j])) + (widen(p2[j]) + widen(p3[j]));
  }
  for (; r < s.rows; ++r)
#pragma omp simd
    for (int64_t j = 0; j < w; ++j) sum[j] += widen(xs[r * c + j]);
  const A count = A(s.rows) * A(size);
  for (int64_t g = 0; g < k.groups; ++g) {
    A total = 0;
    for (int64_t j = g * size; j < (g + 1) * size; ++j) total += sum[j] + (add ? add[at + j] * A(s.rows) : A(0));
    A m = total / count;
    mean[k.sample * s.groups + k.first / size + g] = m;
    for (int64_t j = g * size; j < (g + 1) * size; ++j) shift[j] = m - (add ? add[at + j] : A(0));
  }
  std::fill(sum, sum + w, A(0));
  r = 0;
  for (; r + 4 <= s.rows; r += 4) {
    const T *p0 = xs + r * c, *p1 = p0 + c, *p2 = p1 + c, *p3 = p2 + c;
#pragma omp simd
    for (int64_t j = 0; j < w; ++j) {
      A a = widen(p0[j]) - shift[j], b = widen(p1[j]) - shift[j], d = widen(p2[j]) - shift[j], e = widen(p3[j]) - shift[j];
      sum[j] += (a * a + b * b) + (d * d + e * e);
    }
  }
  for (; r < s.rows; ++r)
#pragma omp simd
    for (int64_t j = 0; j < w; ++j) {
      A a = widen(xs[r * c + j]) - shift[j];
      sum[j] += a * a;
    }
  for (int64_t g = 0; g < k.groups; ++g) {
    A total = 0;
    for (int64_t j = g * size; j < (g + 1) * size; ++j) total += sum[j];
    A inv = A(1) / std::sqrt(total / count + A(eps));
    rstd[k.sample * s.groups + k.first / size + g] = inv;
    for (int64_t j = g * size; j < (g + 1) * size; ++j) {
      scale[j] = inv * gamma[par + j];
      offset[j] = beta[par + j];
    }
  }
  for (r = 0; r < s.rows; ++r) {
    const T* p = xs + r * c;
    T* q = ys + r * c;
    if (act)
#pragma omp simd
      for (int64_t j = 0; j < w; ++j) {
        A z = (widen(p[j]) - shift[j]) * scale[j] + offset[j];
        narrow(z * sigmoid(z), q[j]);
      }
    else
#pragma omp simd
      for (int64_t j = 0; j < w; ++j) narrow((widen(p[j]) - shift[j]) * scale[j] + offset[j], q[j]);
  }
}

// With dz = dL/dz:  dx = rstd * (gamma dz - mean(gamma dz) - u mean(gamma dz u)), means over the group.
template <typename T, typename A>
void backward_task(const Shape& s, const Task& k, const T* dy, const T* x, const A* add, const A* gamma, const A* beta,
                   int64_t stride, bool act, const A* mean, const A* rstd, T* dx, A* dadd, A* dgamma, A* dbeta) {
  const int64_t c = s.channels, w = k.width, size = s.channels / s.groups;
  std::vector<A> buffer(8 * w, A(0));
  A *s0 = buffer.data(), *s1 = s0 + w, *sx = s1 + w, *shift = sx + w, *inv = shift + w, *ga = inv + w, *be = ga + w,
    *m1 = be + w;
  std::vector<A> second(w, A(0));
  A* m2 = second.data();
  const T *xs = x + k.sample * s.rows * c + k.first, *gs = dy + k.sample * s.rows * c + k.first;
  T* ds = dx + k.sample * s.rows * c + k.first;
  const int64_t at = k.sample * c + k.first, par = k.sample * stride + k.first;
#pragma omp simd
  for (int64_t j = 0; j < w; ++j) {
    const int64_t g = k.sample * s.groups + (k.first + j) / size;
    shift[j] = mean[g] - (add ? add[at + j] : A(0));
    inv[j] = rstd[g];
    ga[j] = gamma[par + j];
    be[j] = beta[par + j];
  }
  for (int64_t r = 0; r < s.rows; ++r) {
    const T *p = xs + r * c, *q = gs + r * c;
    if (act)
#pragma omp simd
      for (int64_t j = 0; j < w; ++j) {
        A u = (widen(p[j]) - shift[j]) * inv[j], z = u * ga[j] + be[j], t = sigmoid(z);
        A dz = widen(q[j]) * t * (A(1) + z * (A(1) - t));
        s0[j] += dz;
        s1[j] += dz * u;
        sx[j] += u;
      }
    else
#pragma omp simd
      for (int64_t j = 0; j < w; ++j) {
        A u = (widen(p[j]) - shift[j]) * inv[j], dz = widen(q[j]);
        s0[j] += dz;
        s1[j] += dz * u;
        sx[j] += u;
      }
  }
  const A count = A(s.rows) * A(size);
  for (int64_t g = 0; g < k.groups; ++g) {
    A a = 0, b = 0;
    for (int64_t j = g * size; j < (g + 1) * size; ++j) {
      a += ga[j] * s0[j];
      b += ga[j] * s1[j];
    }
    for (int64_t j = g * size; j < (g + 1) * size; ++j) {
      m1[j] = a / count;
      m2[j] = b / count;
    }
  }
#pragma omp simd
  for (int64_t j = 0; j < w; ++j) {
    dbeta[at + j] = s0[j];
    dgamma[at + j] = s1[j];
    if (dadd) dadd[at + j] = inv[j] * (ga[j] * s0[j] - A(s.rows) * m1[j] - m2[j] * sx[j]);
  }
  for (int64_t r = 0; r < s.rows; ++r) {
    const T *p = xs + r * c, *q = gs + r * c;
    T* d = ds + r * c;
    if (act)
#pragma omp simd
      for (int64_t j = 0; j < w; ++j) {
        A u = (widen(p[j]) - shift[j]) * inv[j], z = u * ga[j] + be[j], t = sigmoid(z);
        A dz = widen(q[j]) * t * (A(1) + z * (A(1) - t));
        narrow(inv[j] * (ga[j] * dz - m1[j] - u * m2[j]), d[j]);
      }
    else
#pragma omp simd
      for (int64_t j = 0; j < w; ++j) {
        A u = (widen(p[j]) - shift[j]) * inv[j];
        narrow(inv[j] * (ga[j] * widen(q[j]) - m1[j] - u * m2[j]), d[j]);
      }
  }
}

template <typename T>
void forward_all(Shape s, int threads, const void* x, const void* add, const void* gamma, const void* beta, int64_t stride,
                 double eps, int act, void* y, void* mean, void* rstd) {
  using A = typename Accumulator<T>::type;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < s.n * s.chunks; ++i)
    forward_task<T, A>(s, task_of(s, i), static_cast<const T*>(x), static_cast<const A*>(add), static_cast<const A*>(gamma),
                       static_cast<const A*>(beta), stride, eps, act != 0, static_cast<T*>(y), static_cast<A*>(mean),
                       static_cast<A*>(rstd));
}

template <typename T>
void backward_all(Shape s, int threads, const void* dy, const void* x, const void* add, const void* gamma, const void* beta,
                  int64_t stride, int act, const void* mean, const void* rstd, void* dx, void* dadd, void* dgamma,
                  void* dbeta) {
  using A = typename Accumulator<T>::type;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < s.n * s.chunks; ++i)
    backward_task<T, A>(s, task_of(s, i), static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<const A*>(add),
                        static_cast<const A*>(gamma), static_cast<const A*>(beta), stride, act != 0,
                        static_cast<const A*>(mean), static_cast<const A*>(rstd), static_cast<T*>(dx),
                        static_cast<A*>(dadd), static_cast<A*>(dgamma), static_cast<A*>(dbeta));
}

}  // namespace

// dtype: 0 float32, 1 bfloat16, 2 float64. Statistics and parameters are float32, or float64 for float64.
extern "C" void norm_act_forward(int dtype, int64_t n, int64_t rows, int64_t channels, int64_t groups, int64_t chunks,
                                 int threads, const void* x, const void* add, const void* gamma, const void* beta,
                                 int64_t stride, double eps, int act, void* y, void* mean, void* rstd) {
  Shape s{n, rows, channels, groups, chunks};
  auto run = dtype == 0 ? forward_all<float> : dtype == 1 ? forward_all<bf16> : forward_all<double>;
  run(s, threads, x, add, gamma, beta, stride, eps, act, y, mean, rstd);
}

extern "C" void norm_act_backward(int dtype, int64_t n, int64_t rows, int64_t channels, int64_t groups, int64_t chunks,
                                  int threads, const void* dy, const void* x, const void* add, const void* gamma,
                                  const void* beta, int64_t stride, int act, const void* mean, const void* rstd, void* dx,
                                  void* dadd, void* dgamma, void* dbeta) {
  Shape s{n, rows, channels, groups, chunks};
  auto run = dtype == 0 ? backward_all<float> : dtype == 1 ? backward_all<bf16> : backward_all<double>;
  run(s, threads, dy, x, add, gamma, beta, stride, act, mean, rstd, dx, dadd, dgamma, dbeta);
}
