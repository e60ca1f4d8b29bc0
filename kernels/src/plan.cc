#include "plan.h"

#include <stdio.h>

#include "tune.h"

enum { kLine = 64, kRowOfItsOwn = 64 };  // of the cache, in bytes; of a channel, in elements: shorter ones go by columns
#if defined(__SSE2__)
enum { kStreams = 1 };  // there are stores around the cache
#else
enum { kStreams = 0 };
#endif

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t parts(int64_t n, int64_t size) { return n / size + (n % size != 0); }

static int64_t read_cache_bytes() {
  // Not sysconf: inside virtual machines it reports the whole host's cache.
  int64_t kilobytes = 0;
  if (FILE* file = fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r")) {
    long long value = 0;
    char unit = 'K';
    if (fscanf(file, "%lld%c", &value, &unit) >= 1) kilobytes = unit == 'M' ? value * 1024 : value;
    fclose(file);
  }
  // More than 32 MB belong to a whole socket, of which a virtual machine has a share that nothing tells.
  return (int64_t)1024 * least(kilobytes > 0 ? kilobytes : 32 << 10, 32 << 10);
}

static int pretended = -1;
void pretend_way(int way) { pretended = way; }

int64_t cache_bytes() {
  static const int64_t bytes = read_cache_bytes();
  return bytes;
}

int64_t element_count(const int64_t* dims, int rank) {
  int64_t count = 1;
  bool empty = false;
  for (int i = 0; i < rank; i++) {
    if (dims[i] < 0) return -1;
    if (dims[i] == 0) empty = true;
  }
  if (empty) return 0;
  for (int i = 0; i < rank; i++) {
    if (count > INT64_MAX / 16 / dims[i]) return -1;
    count *= dims[i];
  }
  return count;
}

// Merges axes where that changes no address and no statistic, and sets the strides.
static void set_view(Plan& p, const int64_t dims[5], const void* weights, const int64_t wdims[4]) {
  int64_t A = dims[0], G = dims[1], B = dims[2], C = dims[3], D = dims[4];
  p.channels_per_count = C;
  p.weights = weights;
  p.form = kNone;
  p.weight_run = B > 0 ? B : 1;
  p.weight_run_stride = p.weight_row_stride = p.weight_group_stride = p.weight_inner_stride = 0;
  if (weights) {
    const int64_t strides[4] = {wdims[1] * wdims[2] * wdims[3], wdims[2] * wdims[3], wdims[3], 1};
    int64_t step[4];
    for (int i = 0; i < 4; i++) step[i] = wdims[i] > 1 ? strides[i] : 0;
    p.weight_run_stride = step[0];
    p.weight_group_stride = step[1];
    p.weight_row_stride = step[2];
    p.weight_inner_stride = step[3];
    p.form = step[3] ? kVector : kScalar;
    if (B == 1 || step[0] == B * step[2]) {  // one stride for all rows
      p.weight_row_stride = B == 1 ? step[0] : step[2];
      p.weight_run = A * B > 0 ? A * B : 1;
    }
  } else if (C == 1) {  // every element of a group belongs to one channel
    D *= B;
    B = 1;
    if (G == 1) D *= A, A = 1;
  }
  if (B == 1 && p.weight_group_stride == 0) C *= G, G = 1;
  p.groups = G;
  p.channels = C;
  p.inner = D;
  p.rows = A * B;
  p.row_elements = C * D;
  p.group_stride = B * C * D;
  p.run_stride = G * B * C * D;
  p.row_stride = G == 1 || B != 1 ? C * D : G * C * D;
  p.run = most(1, G == 1 || B == 1 ? A * B : B);
  if (!weights) p.weight_run = most(1, p.rows);
  p.even_rows = most(1, least(p.run, p.weight_run));
}

static void set_columns(Plan& p, const Traffic& t, int64_t bytes) {
  const int64_t widest = kScratchBytes / t.statistic;
  p.tile_channels = p.channels;
  p.widen = 1;
  if (p.row_elements > widest) {
    p.tile_channels = widest / p.inner;
    for (int64_t multiple = 32; multiple > 1; multiple /= 2)
      if (p.tile_channels >= multiple) { p.tile_channels -= p.tile_channels % multiple; break; }
  } else if (p.row_stride == p.row_elements && !(p.form != kNone && p.row_elements >= 32)) {
    const int64_t room = widest / 4 / p.row_elements, useful = p.rows / 32;
    p.widen = most(1, least(least(room, useful), p.even_rows / 8));
    for (int64_t multiple = 64; multiple > 1; multiple /= 2)
      if (p.widen >= multiple) { p.widen -= p.widen % multiple; break; }
  }
  p.tiles = parts(p.channels, p.tile_channels);
  // 16 additions per lane between two merges into double; rows are added in groups of at most 8 that touch.
  p.block_rows = 16 * p.widen * most(1, least(8, p.even_rows / p.widen));
  const int64_t units = p.tiles * p.groups, wanted = least(kMaxSegments, most(1, parts(128, units)));
  const int64_t unit_bytes = bytes / units;
  const int64_t count = most(1, least(least(wanted, unit_bytes / (256 << 10)), p.rows / (256 * p.widen)));
  p.segment_rows = parts(parts(p.rows, count), 4 * p.widen) * 4 * p.widen;
  p.segments = parts(p.rows, p.segment_rows);
  p.pieces = 1;
  p.piece_elements = 0;
}

static int64_t common_divisor(int64_t a, int64_t b) { return b == 0 ? a : common_divisor(b, a % b); }

static void set_rows(Plan& p, int64_t bytes, int item) {
  const int64_t row = p.inner * item;
  p.tile_channels = kLine / common_divisor(kLine, row);
  while (p.tile_channels * row < 2048) p.tile_channels *= 2;
  if (p.tile_channels > kMostTogether || p.tile_channels * row > 32 << 10) p.tile_channels = 1;  // long rows: two pieces in many lines
  if (p.tile_channels > p.channels) p.tile_channels = p.channels;
  p.widen = 1;
  p.tiles = parts(p.channels, p.tile_channels);
  // While a block is in the second-level cache, each channel of the tile reads its part of it.
  p.block_rows = most(32, (128 << 10) / (p.tile_channels * row));
  const int64_t units = p.tiles * p.groups, wanted = least(kMaxSegments, most(1, parts(128, units)));
  const int64_t count = most(1, least(wanted, bytes / units / (256 << 10)));
  p.segment_rows = parts(p.rows, least(count, p.rows));
  const int64_t row_parts = parts(p.rows, p.segment_rows);
  p.pieces = p.tile_channels > 1 ? 1 : most(1, count / row_parts);
  p.piece_elements = parts(parts(p.inner, p.pieces), 64) * 64;
  p.pieces = parts(p.inner, p.piece_elements);
  p.segments = row_parts * p.pieces;
}

int64_t bytes_in_a_row(const Plan& p, int item) {
  return (p.tiles == 1 && !p.by_rows ? p.even_rows * p.row_elements : p.tile_channels * p.inner) * item;
}

// Which ways are open, and which one the sizes suggest. A slab pays where a tile (all that is read of it) stays in this
// thread's share of the cache and there is a tile for every thread. By columns it must also be read in long stretches:
// strips of single cache lines are slower than two sweeps.
static void set_ways(Plan& p, const Traffic& t, int64_t bytes, int threads) {
  const int64_t units = p.tiles * p.groups, slab_bytes = bytes / units * (t.arrays - 1);
  const bool slab = t.reduces && t.applies && (units >= 2 * threads || (units >= threads && threads <= 2)) &&
                    (p.by_rows || bytes_in_a_row(p, t.item) >= 3072);
  const bool around = kStreams && t.applies && !t.in_place;
  for (int way = 0; way < kWays; way++) {
    const bool open = (!(way & kAround) || around) && (!(way & kSlab) || slab) && (!(way & kAhead) || way & kSlab);
    p.ways |= (unsigned)open << way;
  }
  p.guess = around && bytes * t.arrays > cache_bytes() / 4 * 3 ? kAround : 0;
  if (slab && slab_bytes * threads <= cache_bytes() / 4 * 3) p.guess |= kSlab;
  // Writing leaves reading idle, and the processor does not foresee the rows of the next slab. Two slabs for every thread
  // must fit.
  if (slab && slab_bytes * threads <= cache_bytes() / 8 * 3) p.guess |= kAhead;
}

void take(Plan& p, int way) {
  p.stream = way & kAround;
  p.slab = way & kSlab;
  p.fetch_ahead = !(way & kAhead) ? 0 : p.tiles > 1 ? p.tile_channels * p.inner : p.group_stride;
}

Plan make_plan(const int64_t dims[5], const void* weights, const int64_t wdims[4], const Traffic& t, int threads) {
  Plan p;
  set_view(p, dims, weights, wdims);
  const int64_t elements = p.groups * p.rows * p.row_elements, bytes = elements * t.item;
  p.by_rows = false;
  p.ways = 0, p.guess = 0;
  p.tile_channels = p.widen = p.segments = p.pieces = p.block_rows = p.segment_rows = 1;
  p.tiles = p.channels;
  p.piece_elements = p.inner;
  if (elements > 0) {
    p.by_rows = p.inner >= kRowOfItsOwn;
    if (p.by_rows) set_rows(p, bytes, t.item); else set_columns(p, t, bytes);
    if (p.widen > 1 && p.form == kScalar) p.form = kVector;
    set_ways(p, t, bytes, threads);
  }
  if (pretended >= 0 && (p.ways >> pretended & 1)) p.guess = pretended;
  take(p, p.guess);
  return p;
}
