// Writing y and dx, one row at a time. `ahead` is the plan's fetch_ahead.
namespace BN_LEVEL {

// Where a row's coefficients come from: one channel for the whole row, or one channel per column. Written out, not in
// loops: a compiler keeps them in registers, and leaves out those that are not read.
template <class S> struct Same {
  typename Lanes<S>::V m, a, b, offset, c1, c0, ca;
  BN_INLINE_MEMBER Same(const S* const* of, int64_t i)
      : m(splat(of[M][i])), a(splat(of[A][i])), b(splat(of[B][i])), offset(splat(of[OFFSET][i])), c1(splat(of[C1][i])),
        c0(splat(of[C0][i])), ca(splat(of[CA][i])) {}
  // One channel, and from lane n on the next.
  template <class Mask> BN_INLINE_MEMBER Same(const Same& one, const Same& next, Mask first)
      : m(select(first, one.m, next.m)), a(select(first, one.a, next.a)), b(select(first, one.b, next.b)),
        offset(select(first, one.offset, next.offset)), c1(select(first, one.c1, next.c1)), c0(select(first, one.c0, next.c0)),
        ca(select(first, one.ca, next.ca)) {}
  BN_INLINE_MEMBER typename Lanes<S>::V get(int k, int64_t) const {
    return k == M ? m : k == A ? a : k == B ? b : k == OFFSET ? offset : k == C1 ? c1 : k == C0 ? c0 : ca;
  }
};
template <class S> struct Each {
  const S* from[kCoefficients];
  BN_INLINE_MEMBER explicit Each(const S* const* of)
      : from{of[M], of[A], of[B], of[OFFSET], of[C1], of[C0], of[CA]} {}
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

// What one row is made of: channels that lie side by side, each with coefficients of its own, or columns that have theirs.
template <class S> struct Channels {
  const S* const* of;
  int64_t channels;
  BN_INLINE_MEMBER Same<S> from(int64_t c) const { return Same<S>(of, c); }
  BN_INLINE_MEMBER Same<S> from(int64_t c, int n) const { return Same<S>(Same<S>(of, c), Same<S>(of, c + 1), lanes_below<S>(n)); }
};
template <class S> struct OfColumns {
  const S* const* of;
  enum { channels = 1 };
  BN_INLINE_MEMBER Each<S> from(int64_t) const { return Each<S>(of); }
  BN_INLINE_MEMBER Each<S> from(int64_t, int) const { return Each<S>(of); }
};

// The weights of one row: `each` is one for all of its elements, or at[d] is that of a channel's element d, where
// `varies`. Else `at` holds zeros, for a row that is excluded.
template <class S> struct RowWeights {
  S each;
  const S* at;
  bool varies;
};

template <class T, class V> BN_INLINE void put(T* p, V v, Full, bool around) { around ? stream(p, v) : store(p, v, Full{}); }
template <class T, class V> BN_INLINE void put(T* p, V v, Part part, bool) { store(p, v, part); }

// Runs write(from, w, j, tag) over a row and puts the results at out, around the cache if asked. Whole vectors wherever it
// can, over the border of two channels too; in pieces only up to the first line of the cache and at the end.
template <class T, class Source, class Write>
BN_INLINE void each_vector(T* out, int64_t n, const Source& source, const RowWeights<StatOf<T>>& weights, bool around_cache,
                           Write write) {
  using S = StatOf<T>;
  enum { N = Count<T>::N };
  const int64_t inner = n / source.channels, line = around_cache ? (64 - (uintptr_t)out % 64) % 64 / sizeof(T) : 0;
  const int64_t mask = weights.varies ? -1 : 0;
  int64_t j = 0;
  for (int64_t c = 0; c < source.channels; c++) {
    const int64_t start = c * inner, stop = start + inner;
    const auto from = source.from(c);
    auto w = [&](int64_t j) { return weights.at + ((j - start) & mask); };
    for (int now; j < line; j += now) {
      now = (int)least(line - j, N);
      put(out + j, write(from, w(j), j, Part{now}), Part{now}, false);
    }
    for (; j + N <= stop; j += N) put(out + j, write(from, w(j), j, Full{}), Full{}, around_cache);
    if (j == stop) continue;
    const int rest = (int)(stop - j);
    if (c + 1 == source.channels) {
      put(out + j, write(from, w(j), j, Part{rest}), Part{rest}, false);
    } else {
      S both[N];
      if (weights.varies)
        for (int i = 0; i < N; i++) both[i] = weights.at[i < rest ? inner - rest + i : i - rest];
      put(out + j, write(source.from(c, rest), weights.varies ? both : weights.at, j, Full{}), Full{}, around_cache);
      j += N;
    }
  }
}

// The rows of an array that may be absent.
template <class T> BN_INLINE T* at_row(T* array, int64_t at) { return array ? array + at : array; }

template <class T, int X, class Source>
BN_INLINE void standardize_row(const Call& call, const Source& source, int64_t at, int64_t n,
                               const RowWeights<StatOf<T>>& weights, bool around_cache) {
  using S = StatOf<T>;
  using V = VecOf<T>;
  const T *x = (const T*)call.x + at, *residual = at_row((const T*)call.residual, at);
  const V lowest = splat(call.relu ? (S)0 : (S)-INFINITY);
  const int64_t ahead = call.plan.fetch_ahead;
  each_vector((T*)call.out + at, n, source, weights, around_cache, [&](const auto& from, const S* w, int64_t j, auto tag) {
    if (ahead) BN_PREFETCH(x + j + ahead);
    V value = standardized<T, X>(load(x + j, tag), X ? load(w, tag) : V{}, from, j);
    if (residual) value += load(residual + j, tag);
    return select(value < lowest, lowest, value);
  });
}

// dx = CA * (dy - w * ((x - M) * C1 + C0)). C1 is 0 where the statistics are frozen: x, which may not be finite there,
// then has no part in dx.
template <class T, int MASK, int X, class Source>
BN_INLINE void input_row(const Call& call, const Source& source, int64_t at, int64_t n,
                         const RowWeights<StatOf<T>>& weights, bool around_cache) {
  using V = VecOf<T>;
  const T *x = (const T*)call.x + at, *dy = (const T*)call.dy + at, *y = at_row((const T*)call.y, at);
  T *dx = (T*)call.out + at, *d_residual = at_row((T*)call.d_residual, at);
  const V zero = {}, one = splat(weights.each);
  const int64_t ahead = call.plan.fetch_ahead;
  // The second output goes where the first does, where the same vectors of both begin a line of the cache.
  const bool both = around_cache && ((uintptr_t)dx ^ (uintptr_t)d_residual) % 64 == 0;
  each_vector(dx, n, source, weights, around_cache, [&](const auto& from, const StatOf<T>* w, int64_t j, auto tag) {
    if (ahead) BN_PREFETCH(x + j + ahead), BN_PREFETCH(dy + j + ahead);
    const V value = load(x + j, tag), each = X ? load(w, tag) : one;
    V d = masked<T, MASK, X>(load(dy + j, tag), value, each, from, j, y + j, tag);
    if (d_residual) put(d_residual + j, d, tag, both);
    const V slope = from.get(C1, j), constant = from.get(C0, j), ca = from.get(CA, j);
    const V path = select(slope == zero, constant, fma(value - from.get(M, j), slope, constant));
    d = d - (X ? select(each == zero, zero, each * path) : each * path);
    return unless_excluded<X>(value, each, ca * d, zero);
  });
}

// One rectangle of the apply step. `spread` has room for one row of weights.
template <class T, class Source>
static void apply_rectangle(const Call& call, const Rectangle<T>& r, const Source& source, StatOf<T>* spread) {
  using S = StatOf<T>;
  static const S kZeros[Count<T>::N] = {};
  const Plan& p = call.plan;
  for (int64_t row = 0; row < r.rows; row++) {
    const int64_t at = r.at + row * r.stride, n = r.width;
    RowWeights<S> w = {1, kZeros, false};
    if (p.form == kScalar) w.each = r.w[row * r.w_stride];
    if (p.form == kVector) w.at = r.w + row * r.w_stride, w.varies = true;
    if (p.form == kVector && !p.by_rows) spread_weights(p, r, row, spread), w.at = spread;
    const bool around = p.stream && n >= 64 && (uintptr_t)((T*)call.out + at) % sizeof(T) == 0;
    with_flag(w.varies || w.each == 0, [&](auto some) {
      enum { X = decltype(some)::value };
      if (!(call.steps & kInput)) return standardize_row<T, X>(call, source, at, n, w, around);
      with_mask(call, [&](auto mask) { input_row<T, decltype(mask)::value, X>(call, source, at, n, w, around); });
    });
  }
}

}  // namespace BN_LEVEL
