// Moments by columns: as moments.inl, with one running moment per column, folded into channels at the end.
namespace BN_LEVEL {

enum { kPad = 64 };
// Rows that are added in registers before the lanes are written back.
BN_INLINE int64_t rows_together(int64_t left) { return left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1; }
template <class S> struct Width { enum { N = kScratchBytes / sizeof(S) }; };

template <class S> struct Columns {
  alignas(64) double weight[Width<S>::N], mean[Width<S>::N], square[Width<S>::N];  // running, per column
  alignas(64) S k[Width<S>::N + kPad], sum[Width<S>::N + kPad], squares[Width<S>::N + kPad], weights[Width<S>::N + kPad];
  alignas(64) S spread[8][Width<S>::N + kPad];
};

// Adds R rows to the lanes. w: kScalar one weight per row, kVector rows of weights.
template <class T, int W, int R>
BN_INLINE void add_rows(const T* x, int64_t stride, int64_t width, const StatOf<T>* w, int64_t w_stride,
                        Columns<StatOf<T>>& c) {
  using V = VecOf<T>;
  enum { N = Count<T>::N };
  const V zero = {};
  V one[R];
  for (int i = 0; i < R; i++) one[i] = W == kScalar ? splat(w[i * w_stride]) : zero;
  // U vectors of every row at a time: longer stretches of each row, and sums that do not wait for each other.
  auto step = [&](int64_t j, auto vectors, auto tag, auto keep) {
    enum { U = decltype(vectors)::value };
    V k[U], s[U], q[U], n[U];
    for (int u = 0; u < U; u++) k[u] = load(c.k + j + u * N, Full{}), s[u] = q[u] = n[u] = zero;
    for (int i = 0; i < R; i++) {
      const T* row = x + i * stride + j;
      if (R == 8)  // the next rows; past the end a prefetch does nothing
        for (int b = 0; b < (int)(U * N * sizeof(T)); b += 64) BN_PREFETCH((const char*)(row + R * stride) + b);
      for (int u = 0; u < U; u++) {
        V d = keep(load(row + u * N, tag) - k[u]);
        V weighted = d;
        if (W != kNone) {
          const V each = W == kVector ? load(w + i * w_stride + j + u * N, tag) : one[i];
          d = select(each == zero, zero, d);
          weighted = each * d;
          if (W == kVector) n[u] += each;
        }
        s[u] += weighted;
        q[u] = fma(weighted, d, q[u]);
      }
    }
    for (int u = 0; u < U; u++) {
      const int64_t at = j + u * N;
      store(c.sum + at, load(c.sum + at, Full{}) + s[u], Full{});
      store(c.squares + at, load(c.squares + at, Full{}) + q[u], Full{});
      if (W == kVector) store(c.weights + at, load(c.weights + at, Full{}) + n[u], Full{});
    }
  };
  auto all = [](V d) { return d; };
  int64_t j = 0;
  for (; j + 4 * N <= width; j += 4 * N) step(j, Number<4>(), Full{}, all);
  for (; j + N <= width; j += N) step(j, Number<1>(), Full{}, all);
  if (j < width) {  // columns past the end of a short last row are not idle lanes: other rows have them
    const int n = (int)(width - j);
    step(j, Number<1>(), Part{n}, [n](V d) { return select(lanes_below<StatOf<T>>(n), d, V{}); });
  }
}

template <class T, int W>
static void accumulate_columns(const Plan& p, const Rectangle<T>& r, Columns<StatOf<T>>& c) {
  using S = StatOf<T>;
  S all = W == kNone ? (S)r.rows : 0;
  for (int64_t row = 0, together; row < r.rows; row += together) {
    together = rows_together(r.rows - row);
    const S* w = W == kNone ? nullptr : r.w + row * r.w_stride;
    int64_t w_stride = r.w_stride;
    if (W == kScalar)
      for (int i = 0; i < together; i++) all += w[i * w_stride];
    if (W == kVector) {
      for (int i = 0; i < together; i++) spread_weights(p, r, row + i, c.spread[i]);
      w = c.spread[0];
      w_stride = Width<S>::N + kPad;
    }
    const T* x = r.x + row * r.stride;
    if (together == 8) add_rows<T, W, 8>(x, r.stride, r.width, w, w_stride, c);
    else if (together == 4) add_rows<T, W, 4>(x, r.stride, r.width, w, w_stride, c);
    else if (together == 2) add_rows<T, W, 2>(x, r.stride, r.width, w, w_stride, c);
    else add_rows<T, W, 1>(x, r.stride, r.width, w, w_stride, c);
  }
  if (W != kVector)
    for (int64_t j = 0; j < r.width; j++) c.weights[j] += all;
}

// Takes column j of a block again, the plain way.
template <class T, class Rectangles>
static Moment plain_column(const Plan& p, int64_t j, Rectangles rectangles) {
  return plain_moment([&](auto element) {
    rectangles([&](const Rectangle<T>& r) {
      for (int64_t row = 0; row < r.rows && j < r.width; row++)
        element((double)widen(r.x[row * r.stride + j]), (double)weight_at(p, r, row, j));
    });
  });
}

// Merges the lanes of a block into the running moments, 64 columns at a time in loops that vectorize: merge() and
// trusted() spelled out for arrays.
template <class T, class Rectangles>
static void flush_columns(const Plan& p, int64_t width, Columns<StatOf<T>>& c, Rectangles rectangles) {
  const double grain = sizeof(StatOf<T>) == 4 ? 3e-7 * 3e-7 : 6e-16 * 6e-16;
  for (int64_t from = 0; from < width; from += 64) {
    double mean[64], square[64], doubt[64], doubts = 0;
    const int n = (int)least(64, width - from);
    const auto *sums = c.sum + from, *squares = c.squares + from, *weights = c.weights + from, *ks = c.k + from;
    double *old_weight = c.weight + from, *old_mean = c.mean + from, *old_square = c.square + from;
    for (int i = 0; i < n; i++) {
      const double w = weights[i], k = ks[i], q = squares[i], before = old_weight[i];
      const double inverse = w != 0 ? 1 / w : 0, shift = sums[i] * inverse, both = before + w;
      const double share = both != 0 ? w / both : 0, rest = q - sums[i] * shift;
      const double step = w != 0 ? k + shift - old_mean[i] : 0;
      mean[i] = old_mean[i] + step * share;
      square[i] = old_square[i] + (rest < 0 ? 0 : rest) + step * step * before * share;
      const double wrong = q - q + (sums[i] - sums[i]);  // 0, or NaN where the lanes overflowed
      doubt[i] = (q <= 2 * square[i] || q <= w * grain * k * k) && wrong == 0 ? 0.0 : 1.0;
    }
    for (int i = 0; i < n; i++) doubts += doubt[i];
    if (doubts > 0)
      for (int i = 0; i < n; i++)
        if (doubt[i] != 0 && finite(old_mean[i])) {
          Moment merged = {old_weight[i], old_mean[i], old_square[i]};
          merge(merged, plain_column<T>(p, from + i, rectangles));
          mean[i] = merged.mean, square[i] = merged.square;
        }
    for (int i = 0; i < n; i++) old_weight[i] += weights[i], old_mean[i] = mean[i], old_square[i] = square[i];
  }
}

// Merges `count` moments that lie `stride` apart, for each of n neighbours; two passes, so no division per element.
// The result may overwrite the first of them.
static void fold(const double* weight, const double* mean, const double* square, int64_t count, int64_t stride, int64_t n,
                 double* out_weight, double* out_mean, double* out_square) {
  for (int64_t from = 0; from < n; from += 64) {
    double w[64] = {}, m[64] = {}, q[64] = {};
    const int width = (int)least(64, n - from);
    for (int64_t k = 0; k < count; k++)
      for (int i = 0; i < width; i++) {
        const int64_t at = k * stride + from + i;
        w[i] += weight[at];
        m[i] += weight[at] * (mean[at] - mean[from + i]);
        q[i] += square[at];
      }
    for (int i = 0; i < width; i++) m[i] = w[i] != 0 ? mean[from + i] + m[i] / w[i] : 0;
    for (int64_t k = 0; k < count; k++)
      for (int i = 0; i < width; i++) {
        const int64_t at = k * stride + from + i;
        const double step = mean[at] - m[i];
        if (weight[at] != 0) q[i] += weight[at] * step * step;
      }
    for (int i = 0; i < width; i++) out_weight[from + i] = w[i], out_mean[from + i] = m[i], out_square[from + i] = q[i];
  }
}

// As fold(), for one channel whose columns lie side by side: eight lanes, in a fixed order.
static void fold_row(const double* weight, const double* mean, const double* square, int64_t n, double* out_weight,
                     double* out_mean, double* out_square) {
  double w[8] = {}, m[8] = {}, q[8] = {};
  int64_t j = 0;
  for (; j + 8 <= n; j += 8)
    for (int i = 0; i < 8; i++) w[i] += weight[j + i], m[i] += weight[j + i] * (mean[j + i] - mean[0]), q[i] += square[j + i];
  for (int i = 0; j + i < n; i++) w[i] += weight[j + i], m[i] += weight[j + i] * (mean[j + i] - mean[0]), q[i] += square[j + i];
  const double all = total<8>(w), centre = all != 0 ? mean[0] + total<8>(m) / all : 0;
  for (j = 0; j + 8 <= n; j += 8)
    for (int i = 0; i < 8; i++) {
      const double step = mean[j + i] - centre;
      q[i] += weight[j + i] != 0 ? weight[j + i] * step * step : 0;
    }
  for (int i = 0; j + i < n; i++) {
    const double step = mean[j + i] - centre;
    q[i] += weight[j + i] != 0 ? weight[j + i] * step * step : 0;
  }
  *out_weight = all, *out_mean = centre, *out_square = total<8>(q);
}

// One segment of one tile; writes a moment per channel of the tile.
template <class T, int W>
static void segment_by_columns(const Plan& p, const T* x, int64_t g, const Tile& tile, int64_t s, double* weight,
                               double* mean, double* square) {
  using S = StatOf<T>;
  const Segment segment = segment_of(p, s);
  const int64_t whole = tile.channels * p.inner, width = whole * p.widen, from = tile.c0 * p.inner;
  Columns<S> c;
  for (int64_t j = 0; j < width; j++) c.weight[j] = c.mean[j] = c.square[j] = 0;
  auto clear = [&] { for (int64_t j = 0; j < width; j++) c.sum[j] = c.squares[j] = c.weights[j] = 0; };
  for (int64_t r = segment.r0; r < segment.r1; r += p.block_rows) {
    const int64_t end = least(r + p.block_rows, segment.r1);
    auto rectangles = [&](auto f) { each_rectangle(p, x, g, r, end, from, whole, 0, f); };
    auto add = [&](const Rectangle<T>& piece) { accumulate_columns<T, W>(p, piece, c); };
    if (r == segment.r0 || c.weight[0] == 0) {  // a first guess of the mean, from rows all over the block
      for (int64_t j = 0; j < width; j++) c.k[j] = 0;
      clear();
      const int64_t samples = (end - r) / p.widen;
      rectangles([&](Rectangle<T> piece) {
        const int64_t skip = W != kNone && piece.packed > 1 ? 1 : samples >= 64 ? 4 : samples >= 32 ? 2 : 1;
        piece.rows = (piece.rows + skip - 1) / skip, piece.stride *= skip, piece.w_stride *= skip;
        add(piece);
      });
      for (int64_t j = 0; j < width; j++) {
        const S guess = c.sum[j] / c.weights[j];
        c.k[j] = finite(guess) ? guess : 0;
      }
    } else {
      for (int64_t j = 0; j < width; j++) c.k[j] = (S)c.mean[j];
    }
    clear();
    rectangles(add);
    flush_columns<T>(p, width, c, rectangles);
  }
  if (p.widen > 1) fold(c.weight, c.mean, c.square, p.widen, whole, whole, c.weight, c.mean, c.square);
  for (int64_t i = 0; i < tile.channels; i++) {
    const int64_t at = i * p.inner;
    if (p.inner == 1) weight[i] = c.weight[i], mean[i] = c.mean[i], square[i] = c.square[i];
    else fold_row(c.weight + at, c.mean + at, c.square + at, p.inner, weight + i, mean + i, square + i);
  }
}

}  // namespace BN_LEVEL
