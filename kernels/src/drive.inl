// One call from beginning to end: reduce, finish the per-channel vectors, apply; tile by tile or sweep by sweep.
namespace BN_LEVEL {

template <class T> struct Driver {
  using S = StatOf<T>;
  const Call& call;
  const Plan& p;
  const int64_t all;  // groups * channels
  explicit Driver(const Call& c) : call(c), p(c.plan), all(c.plan.groups * c.plan.channels) {}

  double* partial(int what, int64_t segment, int64_t channel) const {
    return call.partial + (what * p.segments + segment) * all + channel;
  }
  S* coefficient(int k) const { return (S*)call.coefficient + k * call.coefficient_stride; }

  // ---- per channel
  double inverse_deviation(int64_t i) const {
    const double square = (double)((const S*)call.variance)[i] + call.epsilon;
    return square == 0 ? 0 : 1 / __builtin_sqrt(square);
  }
  double value(const void* vector, int64_t i, double otherwise) const {
    return vector ? (double)((const S*)vector)[i] : otherwise;
  }

  void set_forward(int64_t i) const {
    const double scale = inverse_deviation(i) * value(call.scale, i, 1), offset = value(call.offset, i, 0);
    const double remainder = value(call.remainder, i, 0);
    const S a = (S)scale;
    coefficient(M)[i] = ((const S*)call.mean)[i];
    coefficient(A)[i] = a;
    coefficient(B)[i] = (S)(offset - remainder * (double)a);
    coefficient(OFFSET)[i] = (S)offset;
    coefficient(C1)[i] = coefficient(C0)[i] = 0;
    coefficient(CA)[i] = a;
  }

  void set_input(int64_t i) const {
    if (call.frozen) return;
    const double live = value(call.live, i, 1), count = value(call.count, i / p.channels_per_count, 0);
    if (live == 0 || count == 0) return;
    const double k = inverse_deviation(i), sum_dy = value(call.sum_dy, i, 0), sum_dy_xh = value(call.sum_dy_xh, i, 0);
    coefficient(C1)[i] = (S)(live / count * sum_dy_xh * k);
    coefficient(C0)[i] = (S)(live / count * (sum_dy - value(call.remainder, i, 0) * k * sum_dy_xh));
  }

  static constexpr double kRounding = sizeof(S) == 4 ? 0x1p-23 : 0x1p-52;

  void finish_moments(int64_t i0, int64_t i1) const {
    S *mean = (S*)call.mean, *remainder = (S*)call.remainder, *variance = (S*)call.variance;
    for (int64_t from = i0; from < i1; from += 64) {
      double w[64], m[64], q[64];
      const int64_t n = least(64, i1 - from);
      fold(partial(0, 0, from), partial(1, 0, from), partial(2, 0, from), p.segments, all, n, w, m, q);
      for (int64_t i = 0; i < n; i++) {
        const double v = w[i] != 0 ? q[i] / w[i] : 0, rest = m[i] - (double)(S)m[i];
        mean[from + i] = (S)m[i];
        // Below the rounding of (x - mean) / stddev it is left out: a moving mean has none, and statistics that have
        // converged to the batch's normalize to the same bits.
        if (remainder) remainder[from + i] = finite(m[i]) && rest * rest > kRounding * kRounding * v ? (S)rest : 0;
        variance[from + i] = (S)v;
      }
    }
  }

  void finish_sums(int64_t i0, int64_t i1) const {
    for (int64_t i = i0; i < i1; i++) {
      double sum = 0, product = 0;
      for (int64_t s = 0; s < p.segments; s++) sum += *partial(0, s, i), product += *partial(1, s, i);
      ((S*)call.sum_dy)[i] = (S)sum;
      ((S*)call.sum_dy_xh)[i] = (S)((product - value(call.remainder, i, 0) * sum) * inverse_deviation(i));
    }
  }

  // After the reduction, if any: results out, coefficients ready for the apply step.
  void finish(int64_t i0, int64_t i1) const {
    if (call.steps & kMoments) finish_moments(i0, i1);
    if (call.steps & kSums) finish_sums(i0, i1);
    if (call.steps & kStandardize)
      for (int64_t i = i0; i < i1; i++) set_forward(i);
    if (call.steps & kInput)
      for (int64_t i = i0; i < i1; i++) set_input(i);
  }
  // Before it: the backward kernels read the mean and, for the activation, y.
  void prepare(int64_t i0, int64_t i1) const {
    if (call.steps & (kSums | kInput))
      for (int64_t i = i0; i < i1; i++) set_forward(i);
  }

  // ---- coefficients of a tile, one per column
  struct Spread { alignas(64) S of[kCoefficients][Width<S>::N + kPad]; };

  void pointers(int64_t g, int64_t channel, const S** of) const {
    for (int k = 0; k < kCoefficients; k++) of[k] = coefficient(k) + g * p.channels + channel;
  }
  // The first `count` of them; the others are not read.
  void spread(int64_t g, const Tile& tile, int count, Spread& room, const S** of) const {
    pointers(g, tile.c0, of);
    // As they are, where whole vectors of them do not reach into another tile's.
    if (p.inner == 1 && p.widen == 1 && tile.channels % Count<T>::N == 0) return;
    enum { N = Count<T>::N };
    const int64_t whole = tile.channels * p.inner;
    for (int k = 0; k < count; k++) {
      for (int64_t c = 0; c < tile.channels; c++) {  // whole vectors, whose ends the next channel writes over
        S* out = room.of[k] + c * p.inner;
        for (int64_t d = 0; d < p.inner; d += N) store(out + d, splat(of[k][c]), Full{});
      }
      for (int64_t i = whole; i < whole * p.widen; i++) room.of[k][i] = room.of[k][i - whole];
      of[k] = room.of[k];
    }
  }

  // ---- tasks
  void reduce(int64_t unit, int64_t segment) const {
    const int64_t g = unit / p.tiles, t = unit % p.tiles;
    const T* x = (const T*)call.x;
    const Tile tile = tile_of(p, t);
    const int64_t channel = g * p.channels + tile.c0;
    double *a = partial(0, segment, channel), *b = partial(1, segment, channel), *c = partial(2, segment, channel);
    if (call.steps & kMoments)
      with_form(p.form, [&](auto form) {
        enum { W = decltype(form)::value };
        if (p.by_rows) segment_by_rows<T, W>(p, x, g, tile, segment, a, b, c);
        else segment_by_columns<T, W>(p, x, g, tile, segment, a, b, c);
      });
    else
      with_mask(call, [&](auto mask) {
        enum { MASK = decltype(mask)::value };
        const S* of[kCoefficients];
        if (p.by_rows) {
          pointers(g, tile.c0, of);
          sums_by_rows<T, MASK>(call, of, g, tile, segment, a, b);
        } else {
          Spread room;
          spread(g, tile, C1, room, of);
          sums_by_columns<T, MASK>(call, Each<S>(of), g, tile, segment, a, b);
        }
      });
  }

  // Rows [r0, r1) of group g, elements [from, from + width) of each channel of the tile, which is one where width is not
  // all of them.
  void apply_rows(int64_t g, const Tile& tile, const Segment& part) const {
    const S* of[kCoefficients];
    const T* x = (const T*)call.x;
    if (p.by_rows) {
      pointers(g, tile.c0, of);
      const Channels<S> source = {of, tile.channels};
      each_rectangle(p, x, g, part.r0, part.r1, tile.c0 * p.inner + part.from, tile.channels * part.width,
                     part.from * p.weight_inner_stride, [&](const Rectangle<T>& r) { apply_rectangle(call, r, source, nullptr); });
    } else {
      Spread room;
      S weights[Width<S>::N + kPad];
      spread(g, tile, call.steps & kInput ? kCoefficients : C1, room, of);
      const OfColumns<S> source = {of};
      each_rectangle(p, x, g, part.r0, part.r1, tile.c0 * p.inner, tile.channels * p.inner, 0,
                     [&](const Rectangle<T>& r) { apply_rectangle(call, r, source, weights); });
    }
    if (p.stream) end_of_stream();
  }

  void apply(int64_t unit, int64_t segment) const {
    apply_rows(unit / p.tiles, tile_of(p, unit % p.tiles), segment_of(p, segment));
  }

  // ---- the plan
  template <class F> void parallel(int64_t n, int64_t bytes, F f) const {
    struct Task {
      static void run(void* context, int64_t i) { (*(F*)context)(i); }
    };
    pool_run(n, &Task::run, &f, bytes);
  }

  void each_channels(int64_t bytes_each, void (Driver::*f)(int64_t, int64_t) const) const {
    const int64_t chunk = 256, n = (all + chunk - 1) / chunk;
    parallel(n, all * bytes_each, [&](int64_t i) { (this->*f)(i * chunk, least(all, (i + 1) * chunk)); });
  }

  void run() const {
    const bool reduces = call.steps & (kMoments | kSums), applies = call.steps & (kStandardize | kInput);
    const int64_t units = p.groups * p.tiles;
    const int64_t bytes = p.groups * p.rows * p.row_elements * (int64_t)sizeof(T) * (call.dy ? 2 : 1);
    if (p.slab) {
      parallel(units, bytes, [&](int64_t unit) {
        const Tile tile = tile_of(p, unit % p.tiles);
        const int64_t i0 = unit / p.tiles * p.channels + tile.c0, i1 = i0 + tile.channels;
        prepare(i0, i1);
        for (int64_t s = 0; s < p.segments; s++) reduce(unit, s);
        finish(i0, i1);
        for (int64_t s = 0; s < p.segments; s++) apply(unit, s);
      });
      return;
    }
    each_channels(64, &Driver::prepare);
    if (reduces) parallel(units * p.segments, bytes, [&](int64_t i) { reduce(i / p.segments, i % p.segments); });
    each_channels(32 * (reduces ? p.segments : 1), &Driver::finish);
    if (!applies) return;
    const int64_t lines = p.groups * p.rows;
    if (p.by_rows && lines >= 16 && p.row_elements * (int64_t)sizeof(T) <= 4 << 20) {
      const int64_t chunk = lines / 64 > 0 ? lines / 64 : 1, per_group = (p.rows + chunk - 1) / chunk;
      parallel(p.groups * per_group, bytes * 2, [&](int64_t i) {
        const int64_t r0 = i % per_group * chunk;  // whole rows of x in the order of memory
        apply_rows(i / per_group, {0, p.channels}, {r0, least(p.rows, r0 + chunk), 0, p.inner});
      });
    } else {
      parallel(units * p.segments, bytes * 2, [&](int64_t i) { apply(i / p.segments, i % p.segments); });
    }
  }
};

template <class T> static void run_call(const Call& call) { Driver<T>(call).run(); }

}  // namespace BN_LEVEL
