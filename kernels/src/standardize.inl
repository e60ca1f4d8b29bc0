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

// X, here and below: elements whose weight is 0 may be among these. Picks `instead` where such an x is not finite.
template <int X, class V> BN_INLINE V unless_excluded(V x, V w, V value, V instead) {
  if (!X) return value;
  return select(finite(x), value, select(w == V{}, instead, value));
}

// y before the activation. The one expression that forward and both backward kernels share: the ReLU mask is never saved.
template <class T, int X, class From, class V>
BN_INLINE V standardized(V x, V w, const From& from, int64_t j) {
  const V y = fma(x - from.get(M, j), from.get(A, j), from.get(B, j));
  return X ? unless_excluded<X>(x, w, y, from.get(OFFSET, j)) : y;
}

// The weights of one row, as its elements see them: `each` is one for all of them, or at[j & mask] is element j's.
template <class S> struct RowWeights {
  S each;
  const S* at;
  int64_t mask;
};

// Runs write(j, tag) over [0, n), whole vectors where it can, and puts the results at out; around the cache if asked.
template <class T, class Write> BN_INLINE void each_vector(T* out, int64_t n, bool around_cache, Write write) {
  enum { N = Count<T>::N };
  around_cache = around_cache && n >= 64 && (uintptr_t)out % sizeof(T) == 0;
  // In pieces up to a line of the cache, whole vectors after it, and the rest in pieces again.
  int64_t j = 0, stop = around_cache ? (int64_t)((64 - (uintptr_t)out % 64) % 64 / sizeof(T)) : 0;
  for (;;) {
    for (int now; j < stop; j += now) {
      now = (int)least(stop - j, N);
      store(out + j, write(j, Part{now}), Part{now});
    }
    if (j == n) return;
    if (around_cache)
      for (; j + N <= n; j += N) stream(out + j, write(j, Full{}));
    else
      for (; j + N <= n; j += N) store(out + j, write(j, Full{}), Full{});
    stop = n;
    if (j == n) return;
  }
}

template <class T, int X, class From>
BN_INLINE void standardize_row(const T* x, const RowWeights<StatOf<T>>& w, const From& from, VecOf<T> lowest, T* y, int64_t n,
                               bool around_cache, int64_t ahead) {
  using V = VecOf<T>;
  each_vector(y, n, around_cache, [&](int64_t j, auto tag) {
    if (ahead) BN_PREFETCH(x + j + ahead);
    const V each = X ? load(w.at + (j & w.mask), tag) : V{};
    const V value = standardized<T, X>(load(x + j, tag), each, from, j);
    return select(value < lowest, lowest, value);
  });
}

// dx = CA * (dy - w * ((x - M) * C1 + C0)). C1 is 0 where the statistics are frozen: x, which may not be finite there,
// then has no part in dx.
template <class T, bool RELU, int X, class From>
BN_INLINE void input_row(const T* x, const T* dy, const RowWeights<StatOf<T>>& w, const From& from, T* dx, int64_t n,
                         bool around_cache, int64_t ahead) {
  using V = VecOf<T>;
  const V zero = {}, one = splat(w.each);
  each_vector(dx, n, around_cache, [&](int64_t j, auto tag) {
    if (ahead) BN_PREFETCH(x + j + ahead), BN_PREFETCH(dy + j + ahead);
    const V value = load(x + j, tag), each = X ? load(w.at + (j & w.mask), tag) : one;
    V d = load(dy + j, tag);
    if (RELU) d = select(standardized<T, X>(value, each, from, j) > zero, d, zero);
    const V slope = from.get(C1, j), constant = from.get(C0, j), ca = from.get(CA, j);
    const V path = select(slope == zero, constant, fma(value - from.get(M, j), slope, constant));
    d = d - (X ? select(each == zero, zero, each * path) : each * path);
    return unless_excluded<X>(value, each, ca * d, zero);
  });
}

// One rectangle of the apply step. `spread` has room for one row of weights.
template <class T, class From>
static void apply_rectangle(const Call& call, const Rectangle<T>& r, const From& given, StatOf<T>* spread) {
  using S = StatOf<T>;
  static const S kZeros[Count<T>::N] = {};
  const From from = given;  // a copy that no store can change: it stays in registers
  const Plan& p = call.plan;
  T* out = (T*)call.out + r.at;
  const T* dy = (const T*)call.dy + (call.dy ? r.at : 0);
  const VecOf<T> lowest = splat(call.relu ? (S)0 : (S)-INFINITY);
  for (int64_t row = 0; row < r.rows; row++) {
    const int64_t at = row * r.stride;
    RowWeights<S> w = {1, kZeros, 0};
    if (p.form == kScalar) w.each = r.w[row * r.w_stride];
    if (p.form == kVector) w.at = r.w + row * r.w_stride, w.mask = -1;
    if (p.form == kVector && !p.by_rows) spread_weights(p, r, row, spread), w.at = spread;
    with_flag(p.form == kVector || w.each == 0, [&](auto some) {
      enum { X = decltype(some)::value };
      if (!(call.steps & kInput))
        return standardize_row<T, X>(r.x + at, w, from, lowest, out + at, r.width, p.stream, p.fetch_ahead);
      with_flag(call.relu, [&](auto relu) {
        input_row<T, decltype(relu)::value, X>(r.x + at, dy + at, w, from, out + at, r.width, p.stream, p.fetch_ahead);
      });
    });
  }
}

}  // namespace BN_LEVEL
