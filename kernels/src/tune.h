// Which way a call goes is learned while it works. Where results are stored (through the cache or around it), whether a
// tile is reduced and applied at once or in two sweeps, and whether the next tile is fetched ahead change no bit of a
// result, and what is fastest depends on a machine that nobody has seen: so each is tried on real calls.
//
// For every question (operation, type, layout, size class, threads): the first call goes the way that the plan guesses
// and does not count, then each way is tried three to five times, and the one with the shortest time is kept. Now and
// then, ever less often, another is looked at again; twice in a row faster than what is kept, it is kept instead. What
// counts is what a way takes where it is taken always: the call before it may have gone another way.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <atomic>

enum Way { kAround = 1, kSlab = 2, kAhead = 4, kWays = 8 };  // a way is a sum of these

struct Question {
  int steps, dtype, arrays, threads, by_rows;
  int64_t bytes, stretch;  // of x; that touch in memory. Only their size class counts
  unsigned ways;           // bit 1 << way of those that are open
};

class Tuner {
 public:
  struct Answer { int way; int entry; };  // entry: -1 where nothing is learned
  Answer ask(const Question& question, int guess);
  void tell(Answer answer, double seconds);
  // One line for each question, as bn_learned() has them; the number of characters, even where they do not fit.
  size_t describe(char* text, size_t size);
  void forget();
  void release() { busy_.clear(); }  // after fork(), where a thread that is not there may hold it

 private:
  enum { kEntries = 512, kTimes = 5, kFirstPause = 32, kLongestPause = 1024 };
  struct Times {
    float last[kTimes];
    unsigned count;
    float least() const;
  };
  struct Entry {
    uint64_t key;  // 0: free
    Question question;
    int64_t calls;
    int kept;   // the way that is taken; -1 while ways are tried
    int other;  // the way that is looked at, or -1
    int looks, pause, next_pause, turn;
    Times times[kWays];
  };
  int find(const Question& question);
  static int untried(const Entry& entry, int guess);
  static int fastest(const Entry& entry);
  void look(Entry& entry, int way, float seconds);

  // Held for nanoseconds. Who does not get it goes the way of the guess; nothing waits, after fork() neither.
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
  Entry entries_[kEntries] = {};
};

Tuner& tuner();
bool learns();  // false where the environment variable BATCHNORM_TUNE is off
