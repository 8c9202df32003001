// Group normalisation, a per-sample affine map, SiLU and dropout in one pass over memory, for pixels whose channels lie side
// by side (channels_last). Plain C++ without any header of torch: compiled in seconds on first use, called through ctypes.
//
//   v = x + add            add (n, c) or null
//   u = (v - mean_g) * rstd_g,   z = u * gamma + beta,   a = z * sigmoid(z) or z,   y = a * mask / keep
//
// gamma and beta are (n, c), or (c) with stride 0. The mask is a hash of (seed, sample, row, channel): the gradient makes it
// again, so that nobody stores it. Sums are taken per channel over the rows, then over the channels of a group, in an order
// that does not depend on the number of threads. Squares are taken about the first row, because E[x^2] - E[x]^2 loses digits
// where the mean is large.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

struct bf16 {
  uint16_t bits;
};

// Vectors of the compiler's own, as wide as a register: of wider ones GCC takes comparisons apart, number by number.
#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX2__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
typedef float Floats __attribute__((vector_size(BYTES)));
typedef double Doubles __attribute__((vector_size(BYTES)));
typedef uint32_t Words __attribute__((vector_size(BYTES)));
typedef int32_t Ints __attribute__((vector_size(BYTES)));
typedef uint64_t Longs __attribute__((vector_size(BYTES)));
typedef uint16_t Halves __attribute__((vector_size(BYTES / 2)));

template <typename T>
struct Wide {  // of float and bf16: lanes of float
  using A = float;
  using V = Floats;
  using U = Words;
};
template <>
struct Wide<double> {
  using A = double;
  using V = Doubles;
  using U = Longs;
};
template <typename V>
constexpr int64_t lanes = BYTES / 4;
template <>
constexpr int64_t lanes<Doubles> = BYTES / 8;

inline Floats load(const bf16* p) {
  Halves h;
  std::memcpy(&h, p, sizeof h);
  return reinterpret_cast<Floats>(__builtin_convertvector(h, Words) << 16);
}
inline Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline Doubles load(const double* p) {
  Doubles v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(Floats v, bf16* p) {  // to nearest, ties to even; NaN stays NaN
#if defined(__AVX512BF16__)
  const __m256bh h = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
  std::memcpy(p, &h, sizeof h);
#else
  const Words u = reinterpret_cast<Words>(v);
  const Words rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const Words nan = reinterpret_cast<Words>(v != v);
  const Halves h = __builtin_convertvector((rounded & ~nan) | (0x7fc0u & nan), Halves);
  std::memcpy(p, &h, sizeof h);
#endif
}
inline void store(Floats v, float* p) { std::memcpy(p, &v, sizeof v); }
inline void store(Doubles v, double* p) { std::memcpy(p, &v, sizeof v); }

// The last channels of a task, where they do not fill a vector.
template <typename V, typename T>
inline V load_part(const T* p, int64_t count) {
  T full[lanes<V>] = {};
  std::memcpy(full, p, count * sizeof(T));
  return load(full);
}
template <typename V, typename T>
inline void store_part(V v, T* p, int64_t count) {
  T full[lanes<V>];
  store(v, full);
  std::memcpy(p, full, count * sizeof(T));
}

// 1 / (1 + exp(-z)) to 2e-7. exp(x) = 2^n p(f) with n = round(x / ln 2); the comparisons are such that NaN passes through.
inline Floats sigmoid(Floats z) {
  Floats x = -z;
  x = x < -87.0f ? Floats{} - 87.0f : x;
  x = x > 87.0f ? Floats{} + 87.0f : x;
  const Ints e = __builtin_convertvector(x * 1.44269504f + 127.5f, Ints);  // n + 127, which is positive
  const Floats n = __builtin_convertvector(e - 127, Floats);
  Floats f = x - n * 0.693359375f;
  f -= n * -2.12194440e-4f;
  Floats p = f * 1.9875691e-4f + 1.3981999e-3f;
  p = p * f + 8.3334519e-3f;
  p = p * f + 4.1665796e-2f;
  p = p * f + 1.6666665e-1f;
  p = p * f + 0.5f;
  p = p * f * f + f + 1.0f;
  const Floats d = p * reinterpret_cast<Floats>(e << 23) + 1.0f;
#if defined(__AVX512F__)
  const Floats r = reinterpret_cast<Floats>(_mm512_rcp14_ps(reinterpret_cast<__m512>(d)));
  return r * (2.0f - d * r);  // a step of Newton's: 14 digits become 28
#else
  return 1.0f / d;
#endif
}
inline Doubles sigmoid(Doubles z) {
  Doubles y;
  for (int i = 0; i < lanes<Doubles>; ++i) y[i] = 1.0 / (1.0 + std::exp(-z[i]));
  return y;
}

// Which elements stay: 32 bits of a hash of the seed, the row of the batch and the channel, against a threshold.
inline uint64_t mixed(uint64_t v) {  // Steele et al. 2014, SplitMix64
  v = (v ^ (v >> 30)) * 0xbf58476d1ce4e5b9u;
  v = (v ^ (v >> 27)) * 0x94d049bb133111ebu;
  return v ^ (v >> 31);
}
struct Dropout {
  uint64_t seed;
  uint32_t threshold;  // 2^32 times the probability; 0 for none
  double scale;
};
inline uint64_t row_key(const Dropout& d, int64_t row) {
  return mixed(d.seed + 0x9e3779b97f4a7c15u * (static_cast<uint64_t>(row) + 1));
}
inline Words channel_words(int64_t first) {
  Words w;
  for (int i = 0; i < lanes<Words>; ++i) w[i] = static_cast<uint32_t>(first + i) * 0x9e3779b9u;
  return w;
}
inline Words bits_of(Words channel, uint64_t key) {
  Words h = channel ^ static_cast<uint32_t>(key);
  h = (h ^ (h >> 16)) * 0x7feb352du;
  h = (h ^ (h >> 15) ^ static_cast<uint32_t>(key >> 32)) * 0x846ca68bu;
  return h ^ (h >> 16);
}
inline Floats dropped(Floats v, Words channel, uint64_t key, const Dropout& d) {
  const Words kept = reinterpret_cast<Words>(bits_of(channel, key) >= d.threshold);
  return reinterpret_cast<Floats>(reinterpret_cast<Words>(v * static_cast<float>(d.scale)) & kept);
}
inline Doubles dropped(Doubles v, Words channel, uint64_t key, const Dropout& d) {
  const Words h = bits_of(channel, key);
  for (int i = 0; i < lanes<Doubles>; ++i) v[i] = h[i] >= d.threshold ? v[i] * d.scale : 0.0;
  return v;
}

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

// Call body(K, j, count, r0, r1) for tiles of a task: rows r0 to r1, and K vectors from channel j on, or the `count` last
// ones. A tile's rows are near each other in memory, and what its columns need stays in registers.
template <int K, typename V, typename Body>
inline void over_tiles(int64_t rows, int64_t width, Body body) {
  for (int64_t r0 = 0; r0 < rows; r0 += 128) {
    const int64_t r1 = std::min(r0 + 128, rows);
    int64_t j = 0;
    for (; j + K * lanes<V> <= width; j += K * lanes<V>) body(std::integral_constant<int, K>(), j, lanes<V>, r0, r1);
    for (; j < width; j += lanes<V>) body(std::integral_constant<int, 1>(), j, std::min(lanes<V>, width - j), r0, r1);
  }
}

template <typename V, typename T>
inline V get(const T* p, int64_t count) {
  return count == lanes<V> ? load(p) : load_part<V>(p, count);
}
template <typename V, typename T>
inline void put(V v, T* p, int64_t count) {
  if (count == lanes<V>)
    store(v, p);
  else
    store_part(v, p, count);
}

template <typename T, bool act, bool drop>
void forward_task(const Shape& s, const Task& k, const T* x, const typename Wide<T>::A* add, const typename Wide<T>::A* gamma,
                  const typename Wide<T>::A* beta, int64_t stride, double eps, const Dropout& dropout, T* y,
                  typename Wide<T>::A* mean, typename Wide<T>::A* rstd) {
  using A = typename Wide<T>::A;
  using V = typename Wide<T>::V;
  const int64_t c = s.channels, w = k.width, size = s.channels / s.groups;
  std::vector<A> buffer(4 * w);
  A *first = buffer.data(), *sum = first + w, *square = sum + w, *scale = square + w;
  const T* xs = x + k.sample * s.rows * c + k.first;
  T* ys = y + k.sample * s.rows * c + k.first;
  const int64_t at = k.sample * c + k.first, par = k.sample * stride + k.first;
  over_tiles<4, V>(s.rows, w, [&](auto count_of, int64_t j, int64_t m, int64_t r0, int64_t r1) {
    constexpr int K = count_of();
    V pivot[K], s1[K], s2[K];
    for (int i = 0; i < K; ++i) {
      pivot[i] = get<V>(xs + j + i * lanes<V>, m);
      s1[i] = get<V>(sum + j + i * lanes<V>, m);
      s2[i] = get<V>(square + j + i * lanes<V>, m);
    }
    for (int64_t r = r0; r < r1; ++r)
      for (int i = 0; i < K; ++i) {
        const V v = get<V>(xs + r * c + j + i * lanes<V>, m) - pivot[i];
        s1[i] += v;
        s2[i] += v * v;
      }
    for (int i = 0; i < K; ++i) {
      put(pivot[i], first + j + i * lanes<V>, m);
      put(s1[i], sum + j + i * lanes<V>, m);
      put(s2[i], square + j + i * lanes<V>, m);
    }
  });
  const A rows = A(s.rows), count = rows * A(size);
  A* shift = first;
  for (int64_t g = 0; g < k.groups; ++g) {
    A total = 0, squares = 0;
    for (int64_t j = g * size; j < (g + 1) * size; ++j) {
      const A off = sum[j] / rows;  // the channel's mean, from the first row on
      square[j] -= sum[j] * off;
      sum[j] = first[j] + (add ? add[at + j] : A(0)) + off;
      total += sum[j];
    }
    const A m = total / A(size);
    for (int64_t j = g * size; j < (g + 1) * size; ++j) squares += square[j] + rows * (sum[j] - m) * (sum[j] - m);
    const A inv = A(1) / std::sqrt(std::max(squares, A(0)) / count + A(eps));
    mean[k.sample * s.groups + k.first / size + g] = m;
    rstd[k.sample * s.groups + k.first / size + g] = inv;
    for (int64_t j = g * size; j < (g + 1) * size; ++j) {
      shift[j] = m - (add ? add[at + j] : A(0));
      scale[j] = inv * gamma[par + j];
    }
  }
  over_tiles<4, V>(s.rows, w, [&](auto count_of, int64_t j, int64_t m, int64_t r0, int64_t r1) {
    constexpr int K = count_of();
    V a[K], b[K], d[K];
    Words channel[K];
    for (int i = 0; i < K; ++i) {
      const int64_t from = j + i * lanes<V>;
      a[i] = get<V>(shift + from, m);
      b[i] = get<V>(scale + from, m);
      d[i] = get<V>(beta + par + from, m);
      if (drop) channel[i] = channel_words(k.first + from);
    }
    for (int64_t r = r0; r < r1; ++r) {
      const uint64_t key = drop ? row_key(dropout, k.sample * s.rows + r) : 0;
      for (int i = 0; i < K; ++i) {
        const int64_t from = r * c + j + i * lanes<V>;
        V z = (get<V>(xs + from, m) - a[i]) * b[i] + d[i];
        if (act) z *= sigmoid(z);
        if (drop) z = dropped(z, channel[i], key, dropout);
        put(z, ys + from, m);
      }
    }
  });
}

template <typename V, bool act>
inline V gradient_of_act(V grad, V z) {
  if (!act) return grad;
  const V t = sigmoid(z);
  return grad * t * (1 + z * (1 - t));
}

// With dz = dL/dz:  dx = rstd * (gamma dz - mean(gamma dz) - u mean(gamma dz u)), means over the group. dz is kept between
// the two passes where a processor's cache holds it, else computed twice. What x has as gradient from elsewhere (past) is added.
template <typename T, bool act, bool drop, bool keep>
void backward_task(const Shape& s, const Task& k, const T* dy, const T* x, const typename Wide<T>::A* add,
                   const typename Wide<T>::A* gamma, const typename Wide<T>::A* beta, int64_t stride, const Dropout& dropout,
                   const typename Wide<T>::A* mean, const typename Wide<T>::A* rstd, const T* past, T* dx,
                   typename Wide<T>::A* dadd,
                   typename Wide<T>::A* dgamma, typename Wide<T>::A* dbeta, typename Wide<T>::A* scratch) {
  using A = typename Wide<T>::A;
  using V = typename Wide<T>::V;
  const int64_t c = s.channels, w = k.width, size = s.channels / s.groups;
  std::vector<A> buffer(8 * w);
  A *s0 = buffer.data(), *s1 = s0 + w, *sx = s1 + w, *shift = sx + w, *inv = shift + w, *scale = inv + w, *m1 = scale + w,
    *m2 = m1 + w;
  const T *xs = x + k.sample * s.rows * c + k.first, *gs = dy + k.sample * s.rows * c + k.first;
  T* ds = dx + k.sample * s.rows * c + k.first;
  const T* os = past ? past + k.sample * s.rows * c + k.first : nullptr;
  const int64_t at = k.sample * c + k.first, par = k.sample * stride + k.first;
  const A *ga = gamma + par, *be = beta + par;
  for (int64_t j = 0; j < w; ++j) {
    const int64_t g = k.sample * s.groups + (k.first + j) / size;
    shift[j] = mean[g] - (add ? add[at + j] : A(0));
    inv[j] = rstd[g];
    scale[j] = inv[j] * ga[j];
  }
  over_tiles<4, V>(s.rows, w, [&](auto count_of, int64_t j, int64_t m, int64_t r0, int64_t r1) {
    constexpr int K = count_of();
    V a[K], b[K], d[K], t0[K], t1[K], tx[K];
    Words channel[K];
    for (int i = 0; i < K; ++i) {
      const int64_t from = j + i * lanes<V>;
      a[i] = get<V>(shift + from, m);
      b[i] = get<V>(scale + from, m);
      d[i] = get<V>(be + from, m);
      t0[i] = get<V>(s0 + from, m);
      t1[i] = get<V>(s1 + from, m);
      tx[i] = get<V>(sx + from, m);
      if (drop) channel[i] = channel_words(k.first + from);
    }
    for (int64_t r = r0; r < r1; ++r) {
      const uint64_t key = drop ? row_key(dropout, k.sample * s.rows + r) : 0;
      for (int i = 0; i < K; ++i) {
        const int64_t from = r * c + j + i * lanes<V>;
        V grad = get<V>(gs + from, m);
        if (drop) grad = dropped(grad, channel[i], key, dropout);
        const V v = get<V>(xs + from, m) - a[i];
        const V dz = gradient_of_act<V, act>(grad, v * b[i] + d[i]);
        t0[i] += dz;
        t1[i] += dz * v;
        tx[i] += v;
        if (keep) put(dz, scratch + r * w + j + i * lanes<V>, m);
      }
    }
    for (int i = 0; i < K; ++i) {
      put(t0[i], s0 + j + i * lanes<V>, m);
      put(t1[i], s1 + j + i * lanes<V>, m);
      put(tx[i], sx + j + i * lanes<V>, m);
    }
  });
  const A count = A(s.rows) * A(size);
  for (int64_t g = 0; g < k.groups; ++g) {
    A a = 0, b = 0;
    for (int64_t j = g * size; j < (g + 1) * size; ++j) {
      s1[j] *= inv[j];
      sx[j] *= inv[j];
      a += ga[j] * s0[j];
      b += ga[j] * s1[j];
    }
    for (int64_t j = g * size; j < (g + 1) * size; ++j) {
      dbeta[at + j] = s0[j];
      dgamma[at + j] = s1[j];
      if (dadd) dadd[at + j] = inv[j] * (ga[j] * s0[j] - A(s.rows) * (a / count) - (b / count) * sx[j]);
      m1[j] = inv[j] * (a / count);
      m2[j] = inv[j] * inv[j] * (b / count);
    }
  }
  over_tiles<4, V>(s.rows, w, [&](auto count_of, int64_t j, int64_t m, int64_t r0, int64_t r1) {
    constexpr int K = count_of();
    V a[K], b[K], d[K], e[K], f[K];
    Words channel[K];
    for (int i = 0; i < K; ++i) {
      const int64_t from = j + i * lanes<V>;
      a[i] = get<V>(shift + from, m);
      b[i] = get<V>(scale + from, m);
      d[i] = get<V>(be + from, m);
      e[i] = get<V>(m1 + from, m);
      f[i] = get<V>(m2 + from, m);
      if (drop && !keep) channel[i] = channel_words(k.first + from);
    }
    for (int64_t r = r0; r < r1; ++r) {
      const uint64_t key = drop && !keep ? row_key(dropout, k.sample * s.rows + r) : 0;
      for (int i = 0; i < K; ++i) {
        const int64_t from = r * c + j + i * lanes<V>;
        const V v = get<V>(xs + from, m) - a[i];
        V dz;
        if (keep) {
          dz = get<V>(scratch + r * w + j + i * lanes<V>, m);
        } else {
          dz = get<V>(gs + from, m);
          if (drop) dz = dropped(dz, channel[i], key, dropout);
          dz = gradient_of_act<V, act>(dz, v * b[i] + d[i]);
        }
        V whole = b[i] * dz - e[i] - v * f[i];
        if (os) whole += get<V>(os + from, m);
        put(whole, ds + from, m);
      }
    }
  });
}

template <typename T, bool act, bool drop>
void forward_all(const Shape& s, int threads, const void* x, const void* add, const void* gamma, const void* beta,
                 int64_t stride, double eps, const Dropout& dropout, void* y, void* mean, void* rstd) {
  using A = typename Wide<T>::A;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < s.n * s.chunks; ++i)
    forward_task<T, act, drop>(s, task_of(s, i), static_cast<const T*>(x), static_cast<const A*>(add),
                               static_cast<const A*>(gamma), static_cast<const A*>(beta), stride, eps, dropout,
                               static_cast<T*>(y), static_cast<A*>(mean), static_cast<A*>(rstd));
}

constexpr int64_t KEPT_BYTES = 1 << 20;

template <typename T, bool act, bool drop>
void backward_all(const Shape& s, int threads, const void* dy, const void* x, const void* add, const void* gamma,
                  const void* beta, int64_t stride, const Dropout& dropout, const void* mean, const void* rstd,
                  const void* past, void* dx, void* dadd, void* dgamma, void* dbeta) {
  using A = typename Wide<T>::A;
  const int64_t widest = (s.groups + s.chunks - 1) / s.chunks * (s.channels / s.groups);
  const bool keep = act && s.rows * widest * static_cast<int64_t>(sizeof(A)) <= KEPT_BYTES;
  const auto task = keep ? backward_task<T, act, drop, true> : backward_task<T, act, drop, false>;
#pragma omp parallel num_threads(threads)
  {
    std::vector<A> scratch(keep ? s.rows * widest : 0);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < s.n * s.chunks; ++i)
      task(s, task_of(s, i), static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<const A*>(add),
           static_cast<const A*>(gamma), static_cast<const A*>(beta), stride, dropout, static_cast<const A*>(mean),
           static_cast<const A*>(rstd), static_cast<const T*>(past), static_cast<T*>(dx), static_cast<A*>(dadd),
           static_cast<A*>(dgamma), static_cast<A*>(dbeta), scratch.data());
  }
}

Dropout dropout_of(uint64_t seed, uint32_t threshold) {
  return {seed, threshold, 1.0 / (1.0 - threshold * 0x1p-32)};
}

}  // namespace

// dtype: 0 float32, 1 bfloat16, 2 float64. Statistics and parameters are float32, or float64 for float64. A threshold of 0
// is no dropout.
#define CHOSEN(function)                                                                                                  \
  (dtype == 0   ? (act ? (threshold ? function<float, true, true> : function<float, true, false>)                         \
                       : (threshold ? function<float, false, true> : function<float, false, false>))                      \
   : dtype == 1 ? (act ? (threshold ? function<bf16, true, true> : function<bf16, true, false>)                           \
                       : (threshold ? function<bf16, false, true> : function<bf16, false, false>))                        \
                : (act ? (threshold ? function<double, true, true> : function<double, true, false>)                       \
                       : (threshold ? function<double, false, true> : function<double, false, false>)))

extern "C" void norm_act_forward(int dtype, int64_t n, int64_t rows, int64_t channels, int64_t groups, int64_t chunks,
                                 int threads, uint64_t seed, uint32_t threshold, int act, const void* x, const void* add,
                                 const void* gamma, const void* beta, int64_t stride, double eps, void* y, void* mean,
                                 void* rstd) {
  const Shape s{n, rows, channels, groups, chunks};
  CHOSEN(forward_all)(s, threads, x, add, gamma, beta, stride, eps, dropout_of(seed, threshold), y, mean, rstd);
}

extern "C" void norm_act_backward(int dtype, int64_t n, int64_t rows, int64_t channels, int64_t groups, int64_t chunks,
                                  int threads, uint64_t seed, uint32_t threshold, int act, const void* dy, const void* x,
                                  const void* add, const void* gamma, const void* beta, int64_t stride, const void* mean,
                                  const void* rstd, const void* past, void* dx, void* dadd, void* dgamma,
                                  void* dbeta) {
  const Shape s{n, rows, channels, groups, chunks};
  CHOSEN(backward_all)
  (s, threads, dy, x, add, gamma, beta, stride, dropout_of(seed, threshold), mean, rstd, past, dx, dadd, dgamma, dbeta);
}
