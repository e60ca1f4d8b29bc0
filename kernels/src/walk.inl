// Rectangles: rows of x that follow each other with one stride, with the weights that belong to them.
namespace BN_LEVEL {

// A size that the compiler knows.
template <int N> struct Number { enum { value = N }; };

BN_INLINE bool finite(double v) { return v - v == 0; }
BN_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

BN_INLINE int64_t row_offset(const Plan& p, int64_t g, int64_t r) {
  return r / p.run * p.run_stride + g * p.group_stride + r % p.run * p.row_stride;
}
BN_INLINE int64_t weight_offset(const Plan& p, int64_t g, int64_t r) {
  return r / p.weight_run * p.weight_run_stride + g * p.weight_group_stride + r % p.weight_run * p.weight_row_stride;
}

template <class T> struct Rectangle {
  const T* x;
  int64_t at, stride, rows, width;  // `at`: offset of the first element, the same in dy and in the output
  const StatOf<T>* w;               // of the first row; unused without weights
  int64_t w_stride;                 // per row of x before widening
  int64_t packed;                   // rows of x in one row of this rectangle
  int64_t after;                    // rows that follow this rectangle with the same stride; worth prefetching
  int64_t beside;                   // bytes to the elements beside these, which are read next; 0: the rows below are
};

// By rows: how far ahead of row `row` to prefetch, in bytes. The processor foresees a row but not the jump to the next
// one; about 12 KB ahead is far enough, further is no better. 0 where that row is not there.
template <class T> BN_INLINE int64_t bytes_ahead(const Rectangle<T>& r, int64_t row) {
  if (r.beside) return r.beside;
  const int64_t bytes = r.width * (int64_t)sizeof(T), rows = bytes >= 8192 ? 1 : least(16, 12288 / bytes);
  return row + rows < r.rows + r.after ? rows * r.stride * (int64_t)sizeof(T) : 0;
}

// Calls f(Rectangle) for rows [r0, r1) of group g, elements [from, from + width) of each; widened where the plan says.
template <class T, class F>
BN_INLINE void each_rectangle(const Plan& p, const T* x, int64_t g, int64_t r0, int64_t r1, int64_t from, int64_t width,
                              int64_t w_from, F f) {
  const StatOf<T>* weights = (const StatOf<T>*)p.weights;
  while (r0 < r1) {
    const int64_t left = p.even_rows - r0 % p.even_rows, rows = left < r1 - r0 ? left : r1 - r0;
    Rectangle<T> piece;
    piece.at = row_offset(p, g, r0) + from;
    piece.w = weights ? weights + weight_offset(p, g, r0) + w_from : nullptr;
    piece.w_stride = p.weight_row_stride;
    piece.after = least(p.rows - r0, left) - rows;
    piece.beside = p.by_rows && p.tile_channels > 1 ? width * (int64_t)sizeof(T) : 0;
    const int64_t full = rows / p.widen, rest = rows % p.widen;
    if (full) {
      piece.x = x + piece.at;
      piece.stride = p.row_stride * p.widen;
      piece.rows = full;
      piece.width = width * p.widen;
      piece.packed = p.widen;
      f(piece);
    }
    if (rest) {  // only where widen > 1, and then width is a whole row
      piece.at += full * p.widen * p.row_stride;
      piece.x = x + piece.at;
      if (weights) piece.w += full * p.widen * p.weight_row_stride;
      piece.stride = 0;
      piece.after = 0;
      piece.rows = 1;
      piece.width = width * rest;
      piece.packed = rest;
      f(piece);
    }
    r0 += rows;
  }
}

// By columns with one weight per element: the weights of one row of a rectangle, spread over channels.
template <class T> static void spread_weights(const Plan& p, const Rectangle<T>& piece, int64_t row, StatOf<T>* out) {
  const int64_t channels = piece.width / piece.packed / p.inner;
  for (int64_t k = 0; k < piece.packed; k++) {
    const StatOf<T>* w = piece.w + (row * piece.packed + k) * piece.w_stride;
    if (p.weight_inner_stride == 0) {
      const StatOf<T> value = *w;
      for (int64_t i = 0; i < channels * p.inner; i++) *out++ = value;
    } else {
      for (int64_t c = 0; c < channels; c++)
        for (int64_t d = 0; d < p.inner; d++) *out++ = w[d];
    }
  }
}

// The weight of element j of row `row` of a rectangle; the plain way.
template <class T> BN_INLINE StatOf<T> weight_at(const Plan& p, const Rectangle<T>& piece, int64_t row, int64_t j) {
  if (!p.weights) return 1;
  const int64_t whole = piece.width / piece.packed;
  const int64_t d = p.by_rows ? j : j % whole % p.inner;
  return piece.w[(row * piece.packed + (p.by_rows ? 0 : j / whole)) * piece.w_stride + d * p.weight_inner_stride];
}

// Segment s of a tile as rows [r0, r1) and, by rows, elements [from, from + width).
struct Segment { int64_t r0, r1, from, width; };
BN_INLINE Segment segment_of(const Plan& p, int64_t s) {
  Segment out;
  const int64_t part = s / p.pieces, piece = s % p.pieces;
  out.r0 = part * p.segment_rows;
  out.r1 = out.r0 + p.segment_rows < p.rows ? out.r0 + p.segment_rows : p.rows;
  out.from = piece * p.piece_elements;
  out.width = out.from + p.piece_elements < p.inner ? p.piece_elements : p.inner - out.from;
  return out;
}

// By columns: tile t as channels [c0, c0 + channels).
struct Tile { int64_t c0, channels; };
BN_INLINE Tile tile_of(const Plan& p, int64_t t) {
  const int64_t c0 = t * p.tile_channels, rest = p.channels - c0;
  return {c0, rest < p.tile_channels ? rest : p.tile_channels};
}

}  // namespace BN_LEVEL
