// Moments. Lanes hold sum(x - k) and sum((x - k)^2) in the arithmetic type over one block; k is the running mean, so
// nothing cancels. Each block is merged into double (Chan, Golub, LeVeque 1979). A block that overflowed, or whose k was
// far from its mean, is taken again the plain way, in double and in two passes.
namespace BN_LEVEL {

struct Moment { double weight, mean, square; };  // square: sum of w (x - mean)^2

BN_INLINE void merge(Moment& into, const Moment& block) {
  const double weight = into.weight + block.weight, share = weight != 0 ? block.weight / weight : 0;
  const double step = block.mean - into.mean;
  into.square += block.square + step * step * into.weight * share;
  into.mean += step * share;
  into.weight = weight;
}

// May a block with these lane totals be trusted? Its rounding error is a few ulps of `square`, so that must not be
// much more than what the merged variance holds, unless k is as near to the mean as its type allows.
template <class S>
BN_INLINE bool trusted(double sum, double square, double k, const Moment& block, const Moment& merged) {
  const double nearest = (sizeof(S) == 4 ? 3e-7 : 6e-16) * k;
  return finite(sum) && finite(square) && (square <= 2 * merged.square || square <= block.weight * nearest * nearest);
}

template <class S> BN_INLINE Moment block_moment(double weight, double sum, double square, double k) {
  if (weight == 0) return {0, 0, 0};
  const double shift = sum / weight, rest = square - sum * shift;
  return {weight, k + shift, rest < 0 ? 0 : rest};
}

// ---- by rows
template <class T, int W>
static void accumulate_rows(const Rectangle<T>& r, StatOf<T> shift, RowSums<StatOf<T>>& out) {
  using V = VecOf<T>;
  const V k = splat(shift), zero = {};
  sum_rows<T, W, true>(r, Arrays<T, 1>{{r.x}}, out, [&](int64_t at, V each, auto tag, V& s, V& q) {
    V d = within<StatOf<T>>(load(r.x + at, tag) - k, tag), weighted = d;
    if (W != kNone) d = select(each == zero, zero, d), weighted = each * d;
    s += weighted;
    q = fma(weighted, d, q);
  });
}

// The plain way: two passes in double. `each` calls its argument with (x, w) for every element of the block.
template <class Each> static Moment plain_moment(Each each) {
  double weight = 0, sum = 0, square = 0;
  each([&](double x, double w) { if (w != 0) weight += w, sum += w * x; });
  if (weight == 0) return {0, 0, 0};
  const double mean = sum / weight;
  each([&](double x, double w) { if (w != 0) square += w * (x - mean) * (x - mean); });
  return {weight, mean, square};
}

template <class T, int W>
static void row_block(const Plan& p, const T* x, int64_t g, int64_t c, const Segment& block, bool first, Moment& running) {
  using S = StatOf<T>;
  const int64_t from = c * p.inner + block.from, w_from = block.from * p.weight_inner_stride;
  double weight = 0, sum = 0, square = 0;
  auto pass = [&](int64_t r1, int64_t width, S k) {
    RowSums<S> sums = {};
    each_rectangle(p, x, g, block.r0, r1, from, width, w_from,
                   [&](const Rectangle<T>& r) { accumulate_rows<T, W>(r, k, sums); });
    weight = W == kNone ? (double)((r1 - block.r0) * width) : W == kScalar ? sums.scalar_weight : total<Lanes<S>::N>(sums.weight);
    sum = total<Lanes<S>::N>(sums.first);
    square = total<Lanes<S>::N>(sums.second);
  };
  S k = (S)running.mean;
  if (first) {  // a first guess of the mean, from many elements: a single one may be an outlier
    pass(block.r0 + 1, least(block.width, 512), 0);
    k = weight != 0 && finite(sum) ? (S)(sum / weight) : 0;
  }
  Moment found, merged;
  bool good = false;
  for (int attempt = 0; attempt < 2 && !good; attempt++) {
    pass(block.r1, block.width, k);
    if (weight == 0) return;
    found = block_moment<S>(weight, sum, square, k), merged = running;
    merge(merged, found);
    good = trusted<S>(sum, square, k, found, merged) || !finite(running.mean);
    k = (S)found.mean;
  }
  if (!good) {
    found = plain_moment([&](auto element) {
      each_rectangle(p, x, g, block.r0, block.r1, from, block.width, w_from, [&](const Rectangle<T>& r) {
        for (int64_t row = 0; row < r.rows; row++)
          for (int64_t j = 0; j < r.width; j++)
            element((double)widen(r.x[row * r.stride + j]), (double)weight_at(p, r, row, j));
      });
    });
    merged = running;
    merge(merged, found);
  }
  running = merged;
}

// The blocks of a segment by rows: 16 chunks of a channel's elements each, or what a tile of several may hold. f(block).
template <class S, class F> BN_INLINE void each_block(const Plan& p, const Segment& segment, F f) {
  const int64_t most = 16 * Chunk<S>::N, cuts = (segment.width + most - 1) / most;
  const int64_t piece = ((segment.width + cuts - 1) / cuts + 63) / 64 * 64;
  int64_t rows = segment.width < most ? most / segment.width : 1;
  if (p.tile_channels > 1) rows = least(rows, p.block_rows);
  for (int64_t r = segment.r0; r < segment.r1; r += rows)
    for (int64_t d = 0; d < segment.width; d += piece)
      f(Segment{r, least(r + rows, segment.r1), segment.from + d, least(piece, segment.width - d)});
}

// One segment of one tile; writes a moment per channel of the tile.
template <class T, int W>
static void segment_by_rows(const Plan& p, const T* x, int64_t g, const Tile& tile, int64_t s, double* weight,
                            double* mean, double* square) {
  Moment running[kMostTogether] = {};
  each_block<StatOf<T>>(p, segment_of(p, s), [&](const Segment& block) {
    for (int64_t c = 0; c < tile.channels; c++)
      row_block<T, W>(p, x, g, tile.c0 + c, block, running[c].weight == 0, running[c]);
  });
  for (int64_t c = 0; c < tile.channels; c++)
    weight[c] = running[c].weight, mean[c] = running[c].mean, square[c] = running[c].square;
}

}  // namespace BN_LEVEL
