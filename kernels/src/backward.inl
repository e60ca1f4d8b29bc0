// The two sums of the backward pass: sum(dy) and sum(dy * (x - M)); lanes in the arithmetic type, blocks in double.
namespace BN_LEVEL {

template <class T, bool RELU, int X, class From, class V, class Tag>
BN_INLINE void gradient_step(const T* x, const T* dy, V each, const From& from, int64_t j, Tag tag, V& sum, V& product) {
  const V zero = {}, value = load(x, tag);
  V d = load(dy, tag);
  if (RELU) d = select(standardized<T, X>(value, each, from, j) > zero, d, zero);
  V centred = value - from.get(M, j);
  if (X != kNoneExcluded) {  // as if the element were not there
    centred = unless_excluded<X>(value, each, centred, zero);
    d = unless_excluded<X>(value, each, d, zero);
  }
  sum += d;
  product = fma(d, centred, product);
}

// ---- by rows
template <class S> struct GradientSums { double sum[Lanes<S>::N], product[Lanes<S>::N]; };

template <class T, bool RELU, int W>
static void gradient_rows(const Rectangle<T>& r, const T* all_dy, const Same<StatOf<T>>& from,
                          GradientSums<StatOf<T>>& out) {
  using S = StatOf<T>;
  using V = VecOf<T>;
  enum { N = Count<T>::N, X = W == kNone ? kNoneExcluded : kSomeExcluded };
  const V zero = {};
  V s0 = zero, s1 = zero, s2 = zero, s3 = zero, q0 = zero, q1 = zero, q2 = zero, q3 = zero;
  auto add_up = [&] {
    add_lanes<S>((s0 + s1) + (s2 + s3), out.sum);
    add_lanes<S>((q0 + q1) + (q2 + q3), out.product);
    s0 = s1 = s2 = s3 = q0 = q1 = q2 = q3 = zero;
  };
  int64_t additions = 0;
  for (int64_t row = 0; row < r.rows; row++) {
    const S* w_row = W == kNone ? nullptr : r.w + row * r.w_stride;
    const V one = W == kScalar ? splat(*w_row) : zero;
    const int64_t ahead = bytes_ahead(r, row);
    for (int64_t first = 0; first < r.width; first += Chunk<S>::N) {
      const int64_t n = least(Chunk<S>::N, r.width - first);
      const T *x = r.x + row * r.stride + first, *dy = all_dy + row * r.stride + first;
      const S* w = W == kVector ? w_row + first : nullptr;
      if (additions > 0 && additions + n / (4 * N) > 16) add_up(), additions = 0;
      additions += n / (4 * N) + 4;
      auto step = [&](int64_t j, V& s, V& q, auto tag) {
        const V each = W == kVector ? load(w + j, tag) : one;
        gradient_step<T, RELU, X>(x + j, dy + j, each, from, 0, tag, s, q);
      };
      int64_t j = 0;
      for (; j + 4 * N <= n; j += 4 * N) {
        for (int b = 0; b < (int)(4 * N * sizeof(T)); b += 64) {
          BN_PREFETCH((const char*)(x + j) + ahead + b);
          BN_PREFETCH((const char*)(dy + j) + ahead + b);
        }
        step(j, s0, q0, Full{});
        step(j + N, s1, q1, Full{});
        step(j + 2 * N, s2, q2, Full{});
        step(j + 3 * N, s3, q3, Full{});
      }
      for (; j + N <= n; j += N) step(j, s0, q0, Full{});
      // The lanes past the end hold dy = 0 and x = 0: they add 0, or else M is not finite and the sum is lost anyway.
      if (j < n) step(j, s0, q0, Part{(int)(n - j)});
    }
  }
  add_up();
}

template <class T, bool RELU>
static void sums_by_rows(const Call& call, const Same<StatOf<T>>& from, int64_t g, int64_t c, int64_t s, double* sum,
                         double* product) {
  using S = StatOf<T>;
  const Plan& p = call.plan;
  *sum = *product = 0;
  each_block<S>(segment_of(p, s), [&](const Segment& block) {
    GradientSums<S> sums = {};
    each_rectangle(p, (const T*)call.x, g, block.r0, block.r1, c * p.inner + block.from, block.width,
                   block.from * p.weight_inner_stride, [&](const Rectangle<T>& r) {
                     const T* dy = (const T*)call.dy + r.at;
                     if (p.form == kNone) gradient_rows<T, RELU, kNone>(r, dy, from, sums);
                     else if (p.form == kScalar) gradient_rows<T, RELU, kScalar>(r, dy, from, sums);
                     else gradient_rows<T, RELU, kVector>(r, dy, from, sums);
                   });
    *sum += total<Lanes<S>::N>(sums.sum);
    *product += total<Lanes<S>::N>(sums.product);
  });
}

// ---- by columns
template <class S> struct GradientColumns {
  double sums[Width<S>::N], products[Width<S>::N];
  alignas(64) S sum[Width<S>::N + kPad], product[Width<S>::N + kPad];
  alignas(64) S spread[8][Width<S>::N + kPad];
};

template <class T, bool RELU, int X, int R>
static void add_gradient_rows(const T* x, const T* dy, int64_t stride, int64_t width, const StatOf<T>* w, int64_t w_stride,
                              const Each<StatOf<T>>& from, GradientColumns<StatOf<T>>& c) {
  using V = VecOf<T>;
  enum { N = Count<T>::N };
  auto step = [&](int64_t j, auto vectors, auto tag) {
    enum { U = decltype(vectors)::value };
    V s[U] = {}, q[U] = {};
    for (int i = 0; i < R; i++) {
      const int64_t at = i * stride + j, next = at + R * stride;
      if (R == 8)
        for (int b = 0; b < (int)(U * N); b += 64 / (int)sizeof(T)) BN_PREFETCH(x + next + b), BN_PREFETCH(dy + next + b);
      for (int u = 0; u < U; u++)
        gradient_step<T, RELU, X>(x + at + u * N, dy + at + u * N,
                                  X == kSomeExcluded ? load(w + i * w_stride + j + u * N, Full{}) : V{}, from, j + u * N,
                                  tag, s[u], q[u]);
    }
    for (int u = 0; u < U; u++) {
      const int64_t at = j + u * N;
      store(c.sum + at, load(c.sum + at, Full{}) + s[u], Full{});
      store(c.product + at, load(c.product + at, Full{}) + q[u], Full{});
    }
  };
  int64_t j = 0;
  for (; j + 4 * N <= width; j += 4 * N) step(j, Number<4>(), Full{});
  for (; j + N <= width; j += N) step(j, Number<1>(), Full{});
  if (j < width) step(j, Number<1>(), Part{(int)(width - j)});
}

template <class T, bool RELU>
static void gradient_columns(const Call& call, const Rectangle<T>& r, const Each<StatOf<T>>& from,
                             GradientColumns<StatOf<T>>& c) {
  using S = StatOf<T>;
  const Plan& p = call.plan;
  const T* dy = (const T*)call.dy + r.at;
  auto add = [&](auto excluded, auto together, int64_t at) {
    add_gradient_rows<T, RELU, decltype(excluded)::value, decltype(together)::value>(
        r.x + at, dy + at, r.stride, r.width, c.spread[0], Width<S>::N + kPad, from, c);
  };
  for (int64_t row = 0, together; row < r.rows; row += together) {
    together = rows_together(r.rows - row);
    const int64_t at = row * r.stride;
    bool excluded = p.form == kVector;
    if (p.form == kScalar)
      for (int i = 0; i < together; i++) excluded |= r.w[(row + i) * r.w_stride] == 0;
    if (excluded) {
      for (int i = 0; i < together; i++) spread_weights(p, r, row + i, c.spread[i]);
      if (together == 8) add(Number<kSomeExcluded>(), Number<8>(), at);
      else if (together == 4) add(Number<kSomeExcluded>(), Number<4>(), at);
      else if (together == 2) add(Number<kSomeExcluded>(), Number<2>(), at);
      else add(Number<kSomeExcluded>(), Number<1>(), at);
    } else {
      if (together == 8) add(Number<kNoneExcluded>(), Number<8>(), at);
      else if (together == 4) add(Number<kNoneExcluded>(), Number<4>(), at);
      else if (together == 2) add(Number<kNoneExcluded>(), Number<2>(), at);
      else add(Number<kNoneExcluded>(), Number<1>(), at);
    }
  }
}

template <class T, bool RELU>
static void sums_by_columns(const Call& call, const Each<StatOf<T>>& from, int64_t g, const Tile& tile, int64_t s,
                            double* sum, double* product) {
  using S = StatOf<T>;
  const Plan& p = call.plan;
  const Segment segment = segment_of(p, s);
  const int64_t whole = tile.channels * p.inner, width = whole * p.widen;
  GradientColumns<S> c;
  for (int64_t j = 0; j < width; j++) c.sums[j] = c.products[j] = 0;
  for (int64_t r = segment.r0; r < segment.r1; r += p.block_rows) {
    for (int64_t j = 0; j < width; j++) c.sum[j] = c.product[j] = 0;
    each_rectangle(p, (const T*)call.x, g, r, least(r + p.block_rows, segment.r1), tile.c0 * p.inner, whole, 0,
                   [&](const Rectangle<T>& rectangle) { gradient_columns<T, RELU>(call, rectangle, from, c); });
    for (int64_t j = 0; j < width; j++) c.sums[j] += c.sum[j], c.products[j] += c.product[j];
  }
  for (int64_t k = 1; k < p.widen; k++)
    for (int64_t j = 0; j < whole; j++) c.sums[j] += c.sums[k * whole + j], c.products[j] += c.products[k * whole + j];
  for (int64_t i = 0; i < tile.channels; i++) {
    double s0 = 0, q0 = 0;
    for (int64_t d = 0; d < p.inner; d++) s0 += c.sums[i * p.inner + d], q0 += c.products[i * p.inner + d];
    sum[i] = s0;
    product[i] = q0;
  }
}

}  // namespace BN_LEVEL
