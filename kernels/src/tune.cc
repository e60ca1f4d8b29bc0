#include "tune.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <initializer_list>

#include "batchnorm.h"
#include "call.h"
#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace {

int log2_of(int64_t n) {
  int log = 0;
  while (n > 1) n /= 2, log++;
  return log;
}
// Half octaves: 1, 1.5, 2, 3, 4, 6, ...
int size_class(int64_t n) {
  const int log = log2_of(n);
  return 2 * log + (log > 0 && n >= ((int64_t)3 << (log - 1)));
}
int64_t smallest(int size_class) {
  const int64_t power = (int64_t)1 << size_class / 2;
  return size_class % 2 ? power / 2 * 3 : power;
}

uint64_t key_of(const Question& q) {
  uint64_t key = 1;
  for (const int64_t part : {(int64_t)q.steps, (int64_t)q.dtype, (int64_t)q.arrays, (int64_t)q.threads, (int64_t)q.by_rows,
                             (int64_t)size_class(q.bytes), (int64_t)log2_of(q.stretch), (int64_t)q.ways})
    key = (key ^ (uint64_t)part) * 0x100000001b3u;  // FNV-1a
  return key | 1;
}

// Releases the flag if it got it.
class Turn {
 public:
  explicit Turn(std::atomic_flag& flag) : flag_(flag), mine(!flag.test_and_set(std::memory_order_acquire)) {}
  ~Turn() {
    if (mine) flag_.clear(std::memory_order_release);
  }

 private:
  std::atomic_flag& flag_;

 public:
  const bool mine;
};

}  // namespace

float Tuner::Times::least() const {
  float least = last[0];
  for (unsigned i = 1; i < kTimes && i < count; i++)
    if (last[i] < least) least = last[i];
  return least;
}

int Tuner::find(const Question& question) {
  const uint64_t key = key_of(question);
  for (int probe = 0; probe < 16; probe++) {
    Entry& entry = entries_[(key + (uint64_t)probe) % kEntries];
    if (entry.key == key) return (int)(&entry - entries_);
    if (entry.key != 0) continue;
    entry = Entry();
    entry.key = key, entry.question = question;
    entry.kept = entry.other = -1;
    entry.pause = entry.next_pause = kFirstPause;
    return (int)(&entry - entries_);
  }
  return -1;
}

int Tuner::fastest(const Entry& entry) {
  int best = -1;
  for (int way = 0; way < kWays; way++)
    if (entry.times[way].count && (best < 0 || entry.times[way].least() < entry.times[best].least())) best = way;
  return best;
}

// The way with the fewest times, the guess first; -1 where all have enough. Twice in a row, for the first call finds in the
// caches what another way left there, and because callers alternate too: what always meets the second of two calls looks
// fast. After two, a way that takes three times as long as the best is not worth another.
int Tuner::untried(const Entry& entry, int guess) {
  const int best = fastest(entry);
  int found = -1, ways = 0;
  for (unsigned left = entry.question.ways; left; left &= left - 1) ways++;
  const unsigned enough = ways <= 3 ? kTimes : ways == 4 ? 4 : 3;  // in twenty calls, the first among them
  for (int i = 0; i < kWays; i++) {
    const int way = i ^ guess;
    const Times& times = entry.times[way];
    if (!(entry.question.ways >> way & 1) || times.count >= enough) continue;
    if (times.count == 1) return way;
    if (times.count >= 2 && times.least() > 3 * entry.times[best].least()) continue;
    if (found < 0 || times.count < entry.times[found].count) found = way;
  }
  return found;
}

Tuner::Answer Tuner::ask(const Question& question, int guess) {
  Turn turn(busy_);
  const int index = turn.mine ? find(question) : -1;
  if (index < 0) return {guess, -1};
  Entry& entry = entries_[index];
  if (entry.calls++ == 0) return {guess, -1};  // memory touched for the first time, threads woken
  if (entry.kept < 0) {
    const int way = untried(entry, guess);
    if (way >= 0) return {way, index};
    entry.kept = fastest(entry);
  }
  if (entry.other < 0 && --entry.pause <= 0)  // the next of the others
    for (int i = 0; i < kWays && entry.other < 0; i++) {
      entry.turn = (entry.turn + 1) % kWays;
      if ((entry.question.ways >> entry.turn & 1) && entry.turn != entry.kept) entry.other = entry.turn, entry.looks = 0;
    }
  return {entry.other >= 0 ? entry.other : entry.kept, index};
}

// A look lasts three calls. The first, which again finds what the kept way left, only tells what is hopeless.
void Tuner::look(Entry& entry, int way, float seconds) {
  const float kept = entry.times[entry.kept].least();
  const bool good = seconds < (entry.looks == 0 ? 2.f : 0.95f) * kept;
  if (good && ++entry.looks < 3) return;  // once more
  if (good) {
    entry.kept = way;
    entry.next_pause = kFirstPause;
  } else if (entry.next_pause < kLongestPause) {
    entry.next_pause *= 2;
  }
  entry.pause = entry.next_pause;
  entry.other = -1;
}

void Tuner::tell(Answer answer, double seconds) {
  if (answer.entry < 0) return;
  Turn turn(busy_);
  if (!turn.mine) return;
  Entry& entry = entries_[answer.entry];
  Times& times = entry.times[answer.way];
  times.last[times.count++ % kTimes] = (float)seconds;
  if (entry.kept >= 0 && answer.way == entry.other) look(entry, answer.way, (float)seconds);
}

size_t Tuner::describe(char* text, size_t size) {
  size_t length = 0;
  auto say = [&](const char* format, ...) {
    va_list list;
    va_start(list, format);
    const int n = vsnprintf(length < size ? text + length : nullptr, length < size ? size - length : 0, format, list);
    va_end(list);
    length += n > 0 ? (size_t)n : 0;
  };
  auto say_way = [&](int way) {
    say("%s, %s%s", way & kSlab ? "tile by tile" : "sweep by sweep", way & kAround ? "around the cache" : "through the cache",
        way & kAhead ? ", fetching ahead" : "");
  };
  static const char* const types[] = {"float32", "float64", "float16", "bfloat16"};
  if (size > 0) text[0] = 0;
  Turn turn(busy_);
  for (int i = 0; turn.mine && i < kEntries; i++) {
    const Entry& entry = entries_[i];
    const int best = entry.kept >= 0 ? entry.kept : fastest(entry);
    if (entry.key == 0 || best < 0) continue;
    const Question& q = entry.question;
    const int bytes = size_class(q.bytes);
    say("%s, %s, %s from %lld bytes, %.1f to %.1f MB, %d arrays, %d threads: ",
        q.steps & kMoments ? "forward" : q.steps == kStandardize ? "standardize" : q.steps & kSums ? "backward" : "backward_input",
        types[q.dtype], q.by_rows ? "rows" : "columns", 1LL << log2_of(q.stretch), (double)smallest(bytes) / 1e6, (double)smallest(bytes + 1) / 1e6,
        q.arrays, q.threads);
    say_way(best);
    say("; %.3f ms%s, %lld calls", 1e3 * entry.times[best].least(), entry.kept < 0 ? ", still trying" : "", (long long)entry.calls);
    for (int way = 0; way < kWays; way++)
      if (way != best && entry.times[way].count) {
        say("; ");
        say_way(way);
        say(": %.2f times", entry.times[way].least() / entry.times[best].least());
      }
    say("\n");
  }
  return length;
}

void Tuner::forget() {
  for (Entry& entry : entries_) entry = Entry();
}

Tuner& tuner() {
  static Tuner one;
#if !defined(_WIN32)
  static const int registered = pthread_atfork(nullptr, nullptr, [] { tuner().release(); });
  (void)registered;
#endif
  return one;
}

bool learns() {
  static const bool on = [] {
    const char* text = getenv("BATCHNORM_TUNE");
    return !text || strcmp(text, "off") != 0;
  }();
  return on;
}
