// Writing y and dx, one row at a time. `ahead` is the plan's fetch_ahead.
namespace BN_LEVEL {

// Where a row's coefficients come from: one channel for the whole row, or one channel per column.
template <class S> struct Same {
  typename Lanes<S>::V value[kCoefficients];
  explicit Same(const S* const* of) {
    for (int k = 0; k < kCoefficients; k++) value[k] = splat(*of[k]);
  }
  BN_INLINE_MEMBER typename Lanes<S>::V get(int k, int64_t) const { return value[k]; }
};
template <class S> struct Each {
  const S* from[kCoefficients];
  explicit Each(const S* const* of) {
    for (int k = 0; k < kCoefficients; k++) from[k] = of[k];
  }
  BN_INLINE_MEMBER typename Lanes<S>::V get(int k, int64_t j) const { return load(from[k] + j, Full{}); }
};

// Excluded elements of a row: none, all, or those whose weight is 0.
enum Excluded { kNoneExcluded, kAllExcluded, kSomeExcluded };

// Picks `instead` where x is excluded and not finite.
template <int X, class V> BN_INLINE V unless_excluded(V x, V w, V value, V instead) {
  if (X == kNoneExcluded) return value;
  if (X == kAllExcluded) return select(finite(x), value, instead);
  return select(finite(x), value, select(w == V{}, instead, value));
}

// y before the activation. The one expression that forward and both backward kernels share: the ReLU mask is never saved.
template <class T, int X, class From, class V>
BN_INLINE V standardized(V x, V w, const From& from, int64_t j) {
  const V y = fma(x - from.get(M, j), from.get(A, j), from.get(B, j));
  return X == kNoneExcluded ? y : unless_excluded<X>(x, w, y, from.get(OFFSET, j));
}

// Runs write(j, tag) over [0, n), whole vectors where it can, and puts the results at out; around the cache if asked.
template <class T, class Write> BN_INLINE void each_vector(T* out, int64_t n, bool around_cache, Write write) {
  enum { N = Count<T>::N };
  int64_t j = 0;
  if (around_cache && n >= 64 && (uintptr_t)out % sizeof(T) == 0) {
    const int64_t head = (int64_t)((64 - (uintptr_t)out % 64) % 64 / sizeof(T));
    while (j < head) {
      const int now = (int)least(head - j, N);
      if (now == N) store(out + j, write(j, Full{}), Full{});
      else store(out + j, write(j, Part{now}), Part{now});
      j += now;
    }
    for (; j + N <= n; j += N) stream(out + j, write(j, Full{}));
  } else {
    for (; j + N <= n; j += N) store(out + j, write(j, Full{}), Full{});
  }
  if (j < n) store(out + j, write(j, Part{(int)(n - j)}), Part{(int)(n - j)});
}

template <class T, bool RELU, int X, class From>
BN_INLINE void standardize_row(const T* x, const StatOf<T>* w, const From& from, T* y, int64_t n, bool around_cache,
                               int64_t ahead) {
  using V = VecOf<T>;
  each_vector(y, n, around_cache, [&](int64_t j, auto tag) {
    const V zero = {};
    if (ahead) BN_PREFETCH(x + j + ahead);
    const V value = standardized<T, X>(load(x + j, tag), X == kSomeExcluded ? load(w + j, tag) : zero, from, j);
    return RELU ? select(value < zero, zero, value) : value;
  });
}

// dx = CA * (dy - w * ((x - M) * C1 + C0)). C1 is 0 where the statistics are frozen: x, which may not be finite there,
// then has no part in dx.
template <class T, bool RELU, int X, class From>
BN_INLINE void input_row(const T* x, const T* dy, StatOf<T> scalar, const StatOf<T>* w, const From& from, T* dx, int64_t n,
                         bool around_cache, int64_t ahead) {
  using V = VecOf<T>;
  const V one = splat(scalar);
  each_vector(dx, n, around_cache, [&](int64_t j, auto tag) {
    if (ahead) BN_PREFETCH(x + j + ahead), BN_PREFETCH(dy + j + ahead);
    const V zero = {}, value = load(x + j, tag), each = X == kSomeExcluded ? load(w + j, tag) : one;
    V d = load(dy + j, tag);
    if (RELU) d = select(standardized<T, X>(value, each, from, j) > zero, d, zero);
    const V slope = from.get(C1, j), constant = from.get(C0, j), ca = from.get(CA, j);
    if (X != kAllExcluded) {
      const V path = select(slope == zero, constant, fma(value - from.get(M, j), slope, constant));
      d = d - (X == kSomeExcluded ? select(each == zero, zero, each * path) : each * path);
    }
    return unless_excluded<X>(value, each, ca * d, zero);
  });
}

// One rectangle of the apply step. `spread` has room for one row of weights.
template <class T, bool RELU, class From>
static void apply_rectangle(const Call& call, const Rectangle<T>& r, const From& given, StatOf<T>* spread) {
  const From from = given;  // a copy that no store can change: it stays in registers
  using S = StatOf<T>;
  const Plan& p = call.plan;
  T* out = (T*)call.out + r.at;
  const T* dy = (const T*)call.dy + (call.dy ? r.at : 0);
  const bool input = call.steps & kInput;
  for (int64_t row = 0; row < r.rows; row++) {
    const int64_t at = row * r.stride;
    const S* w = p.form == kNone ? nullptr : r.w + row * r.w_stride;
    if (p.form == kVector && !p.by_rows) spread_weights(p, r, row, spread), w = spread;
    const S scalar = p.form == kScalar ? *w : 1;
    if (input) {
      if (p.form == kVector) input_row<T, RELU, kSomeExcluded>(r.x + at, dy + at, 1, w, from, out + at, r.width, p.stream, p.fetch_ahead);
      else if (scalar == 0) input_row<T, RELU, kAllExcluded>(r.x + at, dy + at, 0, w, from, out + at, r.width, p.stream, p.fetch_ahead);
      else input_row<T, RELU, kNoneExcluded>(r.x + at, dy + at, scalar, w, from, out + at, r.width, p.stream, p.fetch_ahead);
    } else {
      if (p.form == kVector) standardize_row<T, RELU, kSomeExcluded>(r.x + at, w, from, out + at, r.width, p.stream, p.fetch_ahead);
      else if (scalar == 0) standardize_row<T, RELU, kAllExcluded>(r.x + at, w, from, out + at, r.width, p.stream, p.fetch_ahead);
      else standardize_row<T, RELU, kNoneExcluded>(r.x + at, w, from, out + at, r.width, p.stream, p.fetch_ahead);
    }
  }
}

}  // namespace BN_LEVEL
