// Two sums at once over rectangles of rows, as the moments and the backward pass need them: the loops, without what is
// summed. Lanes are in the arithmetic type; whoever calls says how often they are added up in double.
namespace BN_LEVEL {

enum { kPad = 64 };
template <class S> struct Width { enum { N = kScratchBytes / sizeof(S) }; };

// f with a choice as a type, so that the loops are compiled once for each.
template <class F> BN_INLINE void with_form(WeightForm form, F f) {
  if (form == kNone) f(Number<kNone>());
  else if (form == kScalar) f(Number<kScalar>());
  else f(Number<kVector>());
}
template <class F> BN_INLINE void with_flag(bool flag, F f) { flag ? f(Number<1>()) : f(Number<0>()); }

// Gives 0 past the end of a row.
template <class S, class V> BN_INLINE V within(V v, Full) { return v; }
template <class S, class V> BN_INLINE V within(V v, Part part) { return select(lanes_below<S>(part.n), v, V{}); }

template <class T, int N> struct Arrays { const T* of[N]; };  // of one shape

// ---- by rows: all of a rectangle is one channel's
// Lanes hold at most 20 additions before they are added up in double, so that even rounding errors that all point one
// way (few distinct values, as in 16-bit data) stay below 1e-6, and any others far below.
template <class S> struct RowSums {
  double first[Lanes<S>::N], second[Lanes<S>::N], weight[Lanes<S>::N];
  double scalar_weight;
};
template <class S> struct Chunk { enum { N = 16 * 4 * Lanes<S>::N }; };

template <class S> BN_INLINE void add_lanes(typename Lanes<S>::V v, double* into) {
  S lanes[Lanes<S>::N];
  memcpy(lanes, &v, sizeof v);
  for (int i = 0; i < (int)Lanes<S>::N; i++) into[i] += (double)lanes[i];
}

// step(at, weight, tag, first, second) adds one vector, `at` elements after the rectangle's first. `read` are the arrays
// that it reads. WEIGH: rows of weight 0 are skipped and the weights are added up.
template <class T, int W, bool WEIGH, int ARRAYS, class Step>
BN_INLINE void sum_rows(const Rectangle<T>& r, const Arrays<T, ARRAYS>& read, RowSums<StatOf<T>>& out, Step step) {
  using S = StatOf<T>;
  using V = VecOf<T>;
  enum { N = Count<T>::N };
  const V zero = {};
  V s0 = zero, s1 = zero, s2 = zero, s3 = zero, q0 = zero, q1 = zero, q2 = zero, q3 = zero, weight = zero;
  auto add_up = [&] {
    add_lanes<S>((s0 + s1) + (s2 + s3), out.first);
    add_lanes<S>((q0 + q1) + (q2 + q3), out.second);
    if (W == kVector && WEIGH) add_lanes<S>(weight, out.weight);
    s0 = s1 = s2 = s3 = q0 = q1 = q2 = q3 = weight = zero;
  };
  int64_t additions = 0;
  for (int64_t row = 0; row < r.rows; row++) {
    const S* w = W == kNone ? nullptr : r.w + row * r.w_stride;
    V one = zero;
    if (W == kScalar) {
      if (WEIGH && *w == 0) continue;
      one = splat(*w);
      if (WEIGH) out.scalar_weight += (double)*w * (double)r.width;
    }
    const int64_t ahead = bytes_ahead(r, row);
    for (int64_t from = 0; from < r.width; from += Chunk<S>::N) {
      const int64_t n = least(Chunk<S>::N, r.width - from), at = row * r.stride + from;
      if (additions > 0 && additions + n / (4 * N) > 16) add_up(), additions = 0;
      additions += n / (4 * N) + 1;
      auto add = [&](int64_t j, V& s, V& q, auto tag) {
        const V each = W == kVector ? load(w + from + j, tag) : one;
        if (W == kVector && WEIGH) weight += each;
        step(at + j, each, tag, s, q);
      };
      int64_t j = 0;
      for (; j + 4 * N <= n; j += 4 * N) {
        for (int b = 0; b < (int)(4 * N * sizeof(T)); b += 64)
          for (int a = 0; a < ARRAYS; a++) BN_PREFETCH((const char*)(read.of[a] + at + j) + ahead + b);
        add(j, s0, q0, Full{});
        add(j + N, s1, q1, Full{});
        add(j + 2 * N, s2, q2, Full{});
        add(j + 3 * N, s3, q3, Full{});
      }
      if (j == 0)  // a short row
        for (int b = 0; b < (int)(n * sizeof(T)); b += 64)
          for (int a = 0; a < ARRAYS; a++) BN_PREFETCH((const char*)(read.of[a] + at) + ahead + b);
      if (j + N <= n) add(j, s0, q0, Full{}), j += N;
      if (j + N <= n) add(j, s1, q1, Full{}), j += N;
      if (j + N <= n) add(j, s2, q2, Full{}), j += N;
      if (j < n) add(j, s3, q3, Part{(int)(n - j)});
    }
  }
  add_up();
}

// The sum of n numbers that lie side by side: eight lanes, in a fixed order.
template <class S> BN_INLINE double total_of(const S* numbers, int64_t n) {
  double lanes[8] = {};
  int64_t j = 0;
  for (; j + 8 <= n; j += 8)
    for (int i = 0; i < 8; i++) lanes[i] += (double)numbers[j + i];
  for (int i = 0; j + i < n; i++) lanes[i] += (double)numbers[j + i];
  return total<8>(lanes);
}

// ---- by columns: each column is a channel's
enum { kTogether = 8 };  // rows, at most, that are added in registers before the lanes are written back

template <class S> struct ColumnLanes {
  alignas(64) S first[Width<S>::N + kPad], second[Width<S>::N + kPad], weights[Width<S>::N + kPad];
  alignas(64) S spread[kTogether][Width<S>::N + kPad];  // one weight per element of the rows that are added together
};

// step(i, at, j, tag, first, second, weight) adds one vector: column j of row i, `at` elements after the first.
template <class T, bool WEIGH, int ARRAYS, class Step>
BN_INLINE void sum_columns(const Arrays<T, ARRAYS>& read, int rows, int64_t stride, int64_t width,
                           ColumnLanes<StatOf<T>>& c, Step step) {
  using V = VecOf<T>;
  enum { N = Count<T>::N };
  const int64_t next = rows == kTogether ? rows * stride : 0;  // past the end a prefetch does nothing
  // U vectors of every row at a time: longer stretches of each row, and sums that do not wait for each other.
  auto add = [&](int64_t j, auto vectors, auto tag) {
    enum { U = decltype(vectors)::value };
    V s[U] = {}, q[U] = {}, n[U] = {};
    for (int i = 0; i < rows; i++) {
      const int64_t at = i * stride + j;
      for (int b = 0; b < (int)(U * N); b += 64 / (int)sizeof(T))
        for (int a = 0; a < ARRAYS; a++) BN_PREFETCH(read.of[a] + at + next + b);
      BN_UNROLL
      for (int u = 0; u < U; u++) step(i, at + u * N, j + u * N, tag, s[u], q[u], n[u]);
    }
    BN_UNROLL
    for (int u = 0; u < U; u++) {
      const int64_t at = j + u * N;
      store(c.first + at, load(c.first + at, Full{}) + s[u], Full{});
      store(c.second + at, load(c.second + at, Full{}) + q[u], Full{});
      if (WEIGH) store(c.weights + at, load(c.weights + at, Full{}) + n[u], Full{});
    }
  };
  int64_t j = 0;
  for (; j + 4 * N <= width; j += 4 * N) add(j, Number<4>(), Full{});
  for (; j + N <= width; j += N) add(j, Number<1>(), Full{});
  if (j < width) add(j, Number<1>(), Part{(int)(width - j)});
}

}  // namespace BN_LEVEL
