// How one call walks memory. Integers only; the same for every type and instruction set, and, but for the way that is
// taken (tune.h), for every number of threads: that is what makes results bit-identical.
#pragma once
#include <stdint.h>

// kScratchBytes: widest row of statistics held by the columns kernels; kMostTogether: channels of a tile by rows.
enum { kMaxSegments = 64, kScratchBytes = 4096, kMostTogether = 64 };

enum WeightForm { kNone, kScalar, kVector };  // no weights; one weight per row; one weight per element of a row

struct Plan {
  // The view after merging: groups x channels of statistics, `rows` rows of `channels * inner` elements per group.
  int64_t groups, channels, inner, rows;
  int64_t run, run_stride, row_stride, group_stride;  // row r of group g starts at row_offset(g, r)
  int64_t row_elements;                               // channels * inner
  int64_t channels_per_count;                         // channels of x before merging: count[channel / this]
  // Weights, in elements: row r of group g starts at weight_offset(g, r).
  const void* weights;
  WeightForm form;
  int64_t weight_run, weight_run_stride, weight_row_stride, weight_group_stride, weight_inner_stride;
  int64_t even_rows;  // rows that follow each other with one stride, in x and in the weights

  // by_rows: a row of a channel is `inner` contiguous elements; a tile is the fewest channels whose rows, side by side,
  // end on a line of the cache, so that no line is written in pieces.
  // else by columns: a tile is tile_channels channels, a row of it tile_channels * inner elements; where rows touch,
  // `widen` of them are treated as one row, so that few channels still fill vectors.
  bool by_rows;
  int64_t tile_channels, tiles, widen;
  int64_t segments, segment_rows;  // a tile's rows are reduced in segments, merged in order
  int64_t pieces, piece_elements;  // by_rows: a long row is cut further; segment = row part * pieces + piece
  int64_t block_rows;              // by columns: rows between two merges into double
  // The way, one of `ways` (bit 1 << way); `guess` is what the sizes of the caches suggest. take() sets the rest.
  unsigned ways;
  int guess;
  bool slab;            // reduce and apply a tile while it is in cache, instead of two sweeps
  int64_t fetch_ahead;  // while a slab is written, fetch what lies this many elements further on; 0: nothing
  bool stream;          // write around the cache
};

struct Traffic {
  int item;       // bytes of an element
  int statistic;  // bytes of S
  int arrays;     // arrays of x's size that the call touches
  bool reduces, applies, in_place;
};

// The number of elements of dims, or -1 where a size is negative or the bytes do not fit 63 bits.
int64_t element_count(const int64_t* dims, int rank);

Plan make_plan(const int64_t dims[5], const void* weights, const int64_t wdims[4], const Traffic& traffic, int threads);

void take(Plan& plan, int way);
int64_t bytes_in_a_row(const Plan& plan, int item);  // that a tile touches in one stretch

int64_t cache_bytes();  // of the last-level cache, or what a process may count on of one that others share
void pretend_way(int way);  // for tests: the guess, wherever it is open; -1 restores the truth
