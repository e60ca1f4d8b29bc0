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

// Which dy count: all, those whose y is recomputed and above 0, or those whose saved y is.
enum Mask { kEverything, kRecomputed, kSaved };
template <class F> BN_INLINE void with_mask(const Call& call, F f) {
  if (!call.relu) f(Number<kEverything>());
  else if (call.y) f(Number<kSaved>());
  else f(Number<kRecomputed>());
}
template <class T, int MASK, int X, class From, class V, class Tag>
BN_INLINE V masked(V d, V x, V w, const From& from, int64_t j, const T* y, Tag tag) {
  if (MASK == kEverything) return d;
  return select((MASK == kSaved ? load(y, tag) : standardized<T, X>(x, w, from, j)) > V{}, d, V{});
}

// The weights of one row, as its elements see them: `each` is one for all of them, or at[j & mask] is element j's.
template <class S> struct RowWeights {
  S each;
  const S* at;
  int64_t mask;
};

template <class T, class V> BN_INLINE void put(T* p, V v, Full, bool around) { around ? stream(p, v) : store(p, v, Full{}); }
template <class T, class V> BN_INLINE void put(T* p, V v, Part part, bool) { store(p, v, part); }

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
BN_INLINE void standardize_row(const T* x, const T* residual, const RowWeights<StatOf<T>>& w, const From& from,
                               VecOf<T> lowest, T* y, int64_t n, bool around_cache, int64_t ahead) {
  using V = VecOf<T>;
  each_vector(y, n, around_cache, [&](int64_t j, auto tag) {
    if (ahead) BN_PREFETCH(x + j + ahead);
    const V each = X ? load(w.at + (j & w.mask), tag) : V{};
    V value = standardized<T, X>(load(x + j, tag), each, from, j);
    if (residual) value += load(residual + j, tag);
    return select(value < lowest, lowest, value);
  });
}

// dx = CA * (dy - w * ((x - M) * C1 + C0)). C1 is 0 where the statistics are frozen: x, which may not be finite there,
// then has no part in dx.
template <class T, int MASK, int X, class From>
BN_INLINE void input_row(const T* x, const T* dy, const T* y, const RowWeights<StatOf<T>>& w, const From& from, T* dx,
                         T* d_residual, int64_t n, bool around_cache, int64_t ahead) {
  using V = VecOf<T>;
  const V zero = {}, one = splat(w.each);
  // The second output goes where the first does, where the same vectors of both begin a line of the cache.
  const bool both = around_cache && n >= 64 && (uintptr_t)dx % sizeof(T) == 0 && ((uintptr_t)dx ^ (uintptr_t)d_residual) % 64 == 0;
  each_vector(dx, n, around_cache, [&](int64_t j, auto tag) {
    if (ahead) BN_PREFETCH(x + j + ahead), BN_PREFETCH(dy + j + ahead);
    const V value = load(x + j, tag), each = X ? load(w.at + (j & w.mask), tag) : one;
    V d = masked<T, MASK, X>(load(dy + j, tag), value, each, from, j, y + j, tag);
    if (d_residual) put(d_residual + j, d, tag, both);
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
  const VecOf<T> lowest = splat(call.relu ? (S)0 : (S)-INFINITY);
  auto row_of = [](auto* array, int64_t at) { return array ? array + at : array; };
  for (int64_t row = 0; row < r.rows; row++) {
    const int64_t at = r.at + row * r.stride;
    const T *x = (const T*)call.x + at, *dy = row_of((const T*)call.dy, at), *y = row_of((const T*)call.y, at);
    const T* residual = row_of((const T*)call.residual, at);
    T *out = (T*)call.out + at, *d_residual = row_of((T*)call.d_residual, at);
    RowWeights<S> w = {1, kZeros, 0};
    if (p.form == kScalar) w.each = r.w[row * r.w_stride];
    if (p.form == kVector) w.at = r.w + row * r.w_stride, w.mask = -1;
    if (p.form == kVector && !p.by_rows) spread_weights(p, r, row, spread), w.at = spread;
    with_flag(p.form == kVector || w.each == 0, [&](auto some) {
      enum { X = decltype(some)::value };
      if (!(call.steps & kInput))
        return standardize_row<T, X>(x, residual, w, from, lowest, out, r.width, p.stream, p.fetch_ahead);
      with_mask(call, [&](auto mask) {
        input_row<T, decltype(mask)::value, X>(x, dy, y, w, from, out, d_residual, r.width, p.stream, p.fetch_ahead);
      });
    });
  }
}

}  // namespace BN_LEVEL
