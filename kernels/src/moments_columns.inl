// Moments by columns: as moments.inl, with one running moment per column, or per channel where a channel has several columns.
namespace BN_LEVEL {

template <class S> struct Columns : ColumnLanes<S> {
  alignas(64) double weight[Width<S>::N], mean[Width<S>::N], square[Width<S>::N];  // running, per column
  alignas(64) S k[Width<S>::N + kPad];
};

template <class T, int W>
static void accumulate_columns(const Plan& p, const Rectangle<T>& r, Columns<StatOf<T>>& c) {
  using S = StatOf<T>;
  using V = VecOf<T>;
  const V zero = {};
  S all = W == kNone ? (S)r.rows : 0;
  for (int64_t row = 0, together; row < r.rows; row += together) {
    together = least(kTogether, r.rows - row);
    const S* w = W == kScalar ? r.w + row * r.w_stride : c.spread[0];
    if (W == kScalar)
      for (int i = 0; i < together; i++) all += w[i * r.w_stride];
    if (W == kVector)
      for (int i = 0; i < together; i++) spread_weights(p, r, row + i, c.spread[i]);
    const T* x = r.x + row * r.stride;
    sum_columns<T, W == kVector>(Arrays<T, 1>{{x}}, (int)together, r.stride, r.width, c,
                                 [&](int i, int64_t at, int64_t j, auto tag, V& s, V& q, V& n) {
      V d = within<StatOf<T>>(load(x + at, tag) - load(c.k + j, Full{}), tag), weighted = d;
      if (W != kNone) {
        const V each = W == kVector ? load(c.spread[i] + j, tag) : splat(w[i * r.w_stride]);
        d = select(each == zero, zero, d);
        weighted = each * d;
        if (W == kVector) n += each;
      }
      s += weighted;
      q = fma(weighted, d, q);
    });
  }
  if (W != kVector)
    for (int64_t j = 0; j < r.width; j++) c.weights[j] += all;
}

// Takes columns [from, from + n) of a block again, the plain way, and those every `step` further on.
template <class T, class Rectangles>
static Moment plain_columns(const Plan& p, int64_t from, int64_t n, int64_t step, Rectangles rectangles) {
  return plain_moment([&](auto element) {
    rectangles([&](const Rectangle<T>& r) {
      for (int64_t row = 0; row < r.rows; row++)
        for (int64_t at = from; at < r.width; at += step)
          for (int64_t j = at; j < at + n; j++)
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
    const auto *sums = c.first + from, *squares = c.second + from, *weights = c.weights + from, *ks = c.k + from;
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
          merge(merged, plain_columns<T>(p, from + i, 1, width, rectangles));
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

// As flush_columns() where a channel has several columns: their lanes, which have one k, are added up first, for there may
// be too few rows to pay for a moment of each column.
template <class T, class Rectangles>
static void flush_channels(const Plan& p, int64_t channels, Columns<StatOf<T>>& c, Rectangles rectangles) {
  using S = StatOf<T>;
  const int64_t whole = channels * p.inner;
  for (int64_t i = 0; i < channels; i++) {
    const double k = c.k[i * p.inner];
    double weight = 0, sum = 0, square = 0;
    for (int64_t at = i * p.inner; at < whole * p.widen; at += whole) {
      weight += total_of(c.weights + at, p.inner);
      sum += total_of(c.first + at, p.inner);
      square += total_of(c.second + at, p.inner);
    }
    const Moment running = {c.weight[i], c.mean[i], c.square[i]}, block = block_moment<S>(weight, sum, square, k);
    Moment merged = running;
    merge(merged, block);
    if (!trusted<S>(sum, square, k, block, merged) && finite(running.mean)) {
      merged = running;
      merge(merged, plain_columns<T>(p, i * p.inner, p.inner, whole, rectangles));
    }
    c.weight[i] = merged.weight, c.mean[i] = merged.mean, c.square[i] = merged.square;
  }
}

// One segment of one tile; writes a moment per channel of the tile.
template <class T, int W>
static void segment_by_columns(const Plan& p, const T* x, int64_t g, const Tile& tile, int64_t s, double* weight,
                               double* mean, double* square) {
  using S = StatOf<T>;
  const Segment segment = segment_of(p, s);
  const int64_t whole = tile.channels * p.inner, width = whole * p.widen, from = tile.c0 * p.inner;
  const bool shared = p.inner > 1;  // one moment and one k for all columns of a channel
  Columns<S> c;
  for (int64_t j = 0; j < width; j++) c.weight[j] = c.mean[j] = c.square[j] = 0;
  auto clear = [&] { for (int64_t j = 0; j < width; j++) c.first[j] = c.second[j] = c.weights[j] = 0; };
  auto set_k = [&](int64_t channel, S k) {
    for (int64_t at = channel * p.inner; at < width; at += whole)
      for (int64_t j = at; j < at + p.inner; j++) c.k[j] = k;
  };
  for (int64_t r = segment.r0; r < segment.r1; r += p.block_rows) {
    const int64_t end = least(r + p.block_rows, segment.r1);
    auto rectangles = [&](auto f) { each_rectangle(p, x, g, r, end, from, whole, 0, f); };
    auto add = [&](const Rectangle<T>& piece) { accumulate_columns<T, W>(p, piece, c); };
    if (r == segment.r0 || c.weight[0] == 0) {  // a first guess of the mean, from rows all over the block
      for (int64_t j = 0; j < width; j++) c.k[j] = 0;
      clear();
      const int64_t samples = (end - r) / p.widen;
      rectangles([&](Rectangle<T> piece) {
        int64_t skip = samples >= 64 ? 4 : samples >= 32 ? 2 : 1;
        // Four rows have 64 elements of every channel; where rows are weighed, all four may be excluded.
        if (W != kScalar && samples >= 32 && p.inner >= 16) skip = 8;
        if (W != kNone && piece.packed > 1) skip = 1;
        piece.rows = (piece.rows + skip - 1) / skip, piece.stride *= skip, piece.w_stride *= skip;
        add(piece);
      });
      auto guess_of = [](auto sum, auto weight) { const S guess = (S)(sum / weight); return finite(guess) ? guess : (S)0; };
      if (shared)
        for (int64_t i = 0; i < tile.channels; i++)
          set_k(i, guess_of(total_of(c.first + i * p.inner, p.inner), total_of(c.weights + i * p.inner, p.inner)));
      else
        for (int64_t j = 0; j < width; j++) c.k[j] = guess_of(c.first[j], c.weights[j]);
    } else if (shared) {
      for (int64_t i = 0; i < tile.channels; i++) set_k(i, (S)c.mean[i]);
    } else {
      for (int64_t j = 0; j < width; j++) c.k[j] = (S)c.mean[j];
    }
    clear();
    rectangles(add);
    if (shared) flush_channels<T>(p, tile.channels, c, rectangles);
    else flush_columns<T>(p, width, c, rectangles);
  }
  if (!shared && p.widen > 1) fold(c.weight, c.mean, c.square, p.widen, whole, whole, c.weight, c.mean, c.square);
  for (int64_t i = 0; i < tile.channels; i++) weight[i] = c.weight[i], mean[i] = c.mean[i], square[i] = c.square[i];
}

}  // namespace BN_LEVEL
