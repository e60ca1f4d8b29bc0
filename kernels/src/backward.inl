// The two sums of the backward pass: sum(dy) and sum(dy * (x - M)); lanes in the arithmetic type, blocks in double.
namespace BN_LEVEL {

// What a reduction reads: x, dy, and y where the mask comes from it.
template <int MASK> struct Reads { enum { N = MASK == kSaved ? 3 : 2 }; };
template <class T, int MASK> BN_INLINE Arrays<T, Reads<MASK>::N> gradient_arrays(const Call& call, int64_t at) {
  Arrays<T, Reads<MASK>::N> read = {{(const T*)call.x + at, (const T*)call.dy + at}};
  if (MASK == kSaved) read.of[Reads<MASK>::N - 1] = (const T*)call.y + at;
  return read;
}

template <class T, int MASK, int X, int N, class From, class V, class Tag>
BN_INLINE void gradient_step(const Arrays<T, N>& read, int64_t at, V each, const From& from, int64_t j, Tag tag, V& sum,
                             V& product) {
  const V zero = {}, value = load(read.of[0] + at, tag);
  V d = masked<T, MASK, X>(load(read.of[1] + at, tag), value, each, from, j, read.of[N - 1] + at, tag);
  V centred = value - from.get(M, j);
  if (X) {  // as if the element were not there
    centred = unless_excluded<X>(value, each, centred, zero);
    d = unless_excluded<X>(value, each, d, zero);
  }
  sum += d;
  product = fma(d, centred, product);
}

// ---- by rows
template <class T, int MASK, int W>
static void gradient_rows(const Call& call, const Rectangle<T>& r, const Same<StatOf<T>>& given,
                          RowSums<StatOf<T>>& out) {
  const Same<StatOf<T>> from = given;
  const auto read = gradient_arrays<T, MASK>(call, r.at);
  // The lanes past the end hold dy = 0 and x = 0: they add 0, or else M is not finite and the sum is lost anyway.
  sum_rows<T, W, false>(r, read, out, [&](int64_t at, VecOf<T> each, auto tag, VecOf<T>& s, VecOf<T>& q) {
    gradient_step<T, MASK, W != kNone>(read, at, each, from, 0, tag, s, q);
  });
}

template <class T, int MASK>
static void sums_by_rows(const Call& call, const StatOf<T>* const* of, int64_t g, const Tile& tile, int64_t s, double* sum,
                         double* product) {
  using S = StatOf<T>;
  const Plan& p = call.plan;
  for (int64_t c = 0; c < tile.channels; c++) sum[c] = product[c] = 0;
  each_block<S>(p, segment_of(p, s), [&](const Segment& block) {
    for (int64_t c = 0; c < tile.channels; c++) {
      const Same<S> from(of, c);
      RowSums<S> sums = {};
      each_rectangle(p, (const T*)call.x, g, block.r0, block.r1, (tile.c0 + c) * p.inner + block.from, block.width,
                     block.from * p.weight_inner_stride, [&](const Rectangle<T>& r) {
                       with_form(p.form, [&](auto form) { gradient_rows<T, MASK, decltype(form)::value>(call, r, from, sums); });
                     });
      sum[c] += total<Lanes<S>::N>(sums.first);
      product[c] += total<Lanes<S>::N>(sums.second);
    }
  });
}

// ---- by columns
template <class S> struct GradientColumns : ColumnLanes<S> { double sums[Width<S>::N], products[Width<S>::N]; };

template <class T, int MASK>
static void gradient_columns(const Call& call, const Rectangle<T>& r, const Each<StatOf<T>>& from,
                             GradientColumns<StatOf<T>>& c) {
  using V = VecOf<T>;
  const Plan& p = call.plan;
  for (int64_t row = 0, together; row < r.rows; row += together) {
    together = least(kTogether, r.rows - row);
    const auto read = gradient_arrays<T, MASK>(call, r.at + row * r.stride);
    bool excluded = p.form == kVector;
    if (p.form == kScalar)
      for (int i = 0; i < together; i++) excluded |= r.w[(row + i) * r.w_stride] == 0;
    if (excluded)
      for (int i = 0; i < together; i++) spread_weights(p, r, row + i, c.spread[i]);
    with_flag(excluded, [&](auto some) {
      enum { X = decltype(some)::value };
      sum_columns<T, false>(read, (int)together, r.stride, r.width, c,
                            [&](int i, int64_t at, int64_t j, auto tag, V& s, V& q, V&) {
        const V each = X ? load(c.spread[i] + j, Full{}) : V{};
        gradient_step<T, MASK, X>(read, at, each, from, j, tag, s, q);
      });
    });
  }
}

template <class T, int MASK>
static void sums_by_columns(const Call& call, const Each<StatOf<T>>& from, int64_t g, const Tile& tile, int64_t s,
                            double* sum, double* product) {
  using S = StatOf<T>;
  const Plan& p = call.plan;
  const Segment segment = segment_of(p, s);
  const int64_t whole = tile.channels * p.inner, width = whole * p.widen;
  GradientColumns<S> c;
  for (int64_t j = 0; j < width; j++) c.sums[j] = c.products[j] = 0;
  for (int64_t r = segment.r0; r < segment.r1; r += p.block_rows) {
    for (int64_t j = 0; j < width; j++) c.first[j] = c.second[j] = 0;
    each_rectangle(p, (const T*)call.x, g, r, least(r + p.block_rows, segment.r1), tile.c0 * p.inner, whole, 0,
                   [&](const Rectangle<T>& rectangle) { gradient_columns<T, MASK>(call, rectangle, from, c); });
    for (int64_t j = 0; j < width; j++) c.sums[j] += c.first[j], c.products[j] += c.second[j];
  }
  for (int64_t k = 1; k < p.widen; k++)
    for (int64_t j = 0; j < whole; j++) c.sums[j] += c.sums[k * whole + j], c.products[j] += c.products[k * whole + j];
  for (int64_t i = 0; i < tile.channels; i++) {
    sum[i] = total_of(c.sums + i * p.inner, p.inner);
    product[i] = total_of(c.products + i * p.inner, p.inner);
  }
}

}  // namespace BN_LEVEL
