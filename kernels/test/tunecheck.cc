// What is learned on simulated machines: after twenty calls, within a tenth of the best fixed choice.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <random>
#include <string>

#include "batchnorm.h"
#include "tune.h"

static std::mt19937_64 generator(1);
static double uniform(double from, double to) { return std::uniform_real_distribution<double>(from, to)(generator); }

// Milliseconds of each way, by its number (kAround = 1, kSlab = 2, kAhead = 4); 0 where it is closed.
struct Machine {
  const char* name;
  double cost[kWays];
};
static const Machine kMachines[] = {
    {"26 MB where the cache is small", {2.9, 2.0, 2.3, 1.4, 0, 0, 2.2, 1.2}},
    {"6 MB where the cache is large", {0.52, 1.10, 0.45, 0.95, 0, 0, 0.41, 0.99}},
    {"206 MB, nothing fits", {21, 16, 24, 17, 0, 0, 25, 18}},
    {"only the stores to choose", {1.0, 1.6, 0, 0, 0, 0, 0, 0}},
    {"only the stores to choose, the other way", {1.6, 1.0, 0, 0, 0, 0, 0, 0}},
    {"all alike", {1, 1, 1, 1, 0, 0, 1, 1}},
};

static Question question_of(const Machine& machine, int threads) {
  Question q = {5, BN_FLOAT32, 2, threads, 1, 25 << 20, 3136, 0};
  for (int way = 0; way < kWays; way++) q.ways |= (unsigned)(machine.cost[way] > 0) << way;
  return q;
}
static double best_of(const Machine& machine) {
  double best = 1e9;
  for (double cost : machine.cost) if (cost > 0 && cost < best) best = cost;
  return best;
}

// One call: the way that was taken, in milliseconds without the noise. The clock shows a neighbour who is there in a
// share of the calls and makes them up to five times as long.
static double call(Tuner& tuner, const Machine& machine, int threads, double noise) {
  const Tuner::Answer answer = tuner.ask(question_of(machine, threads), 0);
  const double cost = machine.cost[answer.way];
  if (cost <= 0) { printf("FAILED %s: a way that is closed\n", machine.name); exit(1); }
  const double neighbour = uniform(0, 1) < noise ? uniform(1.2, 5) : 1;
  tuner.tell(answer, 1e-3 * cost * neighbour * uniform(1, 1.03));
  return cost;
}

// In how many of 200 runs the calls 21 to 60 take more than a tenth longer than the best fixed choice.
static int misses(const Machine& machine, double noise) {
  int missed = 0;
  for (int run = 0; run < 200; run++) {
    static Tuner tuner;
    tuner.forget();
    double spent = 0;
    // Another number of threads is another question: what was learned for the first must not be taken for it.
    Machine turned = machine;
    for (int way = 0; way < kWays; way++)
      if (machine.cost[way] > 0) turned.cost[way] = 2 * best_of(machine) * best_of(machine) / machine.cost[way];
    for (int i = 0; i < 60; i++) call(tuner, turned, 8, noise);
    for (int i = 0; i < 60; i++) {
      const double cost = call(tuner, machine, 2, noise);
      if (i >= 20) spent += cost;
    }
    missed += spent / 40 > 1.1 * best_of(machine);
  }
  return missed;
}

// Machines that remember the call before: milliseconds of the last of `calls`, by the way they go.
static double last_of(int calls, int guess, double (*cost)(int way, int before, int i)) {
  static Tuner tuner;
  tuner.forget();
  Question q = question_of({"", {1, 1, 0, 0, 0, 0, 0, 0}}, 2);
  double taken = 0;
  for (int i = 0, before = guess; i < calls; i++) {
    const Tuner::Answer answer = tuner.ask(q, guess);
    tuner.tell(answer, 1e-3 * (taken = cost(answer.way, before, i)));
    before = answer.way;
  }
  return taken;
}
// Stores around the cache leave it without y, so that the next call through it begins in the cold.
static double after_another(int way, int before, int) { return way == kAround ? 1.4 : before == way ? 1.0 : 1.8; }
// Every second call finds its tensor in the cache, whichever way it goes.
static double in_pairs(int way, int, int i) { return (way == kAround ? 1.3 : 1.0) * (i % 2 ? 1 : 1.5); }
// As after_another, once a thousand calls have passed; before that around is better.
static double turning(int way, int before, int i) {
  return i > 1000 ? after_another(way, before, i) : way == kAround ? 0.9 : 1.0;
}

static void expect(bool good, const char* what, const char* name, double value) {
  if (!good) { printf("FAILED %s, %s: %g\n", what, name, value); exit(1); }
}

int main() {
  for (const Machine& machine : kMachines) {
    expect(misses(machine, 0) == 0, "runs of 200 that miss, quiet", machine.name, misses(machine, 0));
    expect(misses(machine, 0.25) <= 10, "runs of 200 that miss, a neighbour in a quarter of the calls", machine.name, misses(machine, 0.25));
  }
  // A machine that changes is learned anew.
  static Tuner tuner;
  for (int i = 0; i < 200; i++) call(tuner, kMachines[3], 2, 0.1);
  double spent = 0;
  for (int i = 0; i < 1200; i++) {
    const double cost = call(tuner, kMachines[4], 2, 0.1);
    if (i >= 600) spent += cost / 600;
  }
  expect(spent <= 1.1, "after the machine changed", kMachines[4].name, spent);
  for (int guess : {0, 1})
    for (int last : {20, 21}) {
      expect(last_of(last, guess, after_another) == 1.0, "the cache as another way left it", "guess", guess);
      expect(last_of(last, guess, in_pairs) <= 1.5, "every second call finds its tensor in the cache", "guess", guess);
    }
  expect(last_of(4000, 0, turning) == 1.0, "a machine that remembers, and changes", "guess", 0);
  // What was learned can be read, however little room there is.
  char little[40];
  const size_t length = tuner.describe(little, sizeof little);
  std::string text(length + 1, '?');
  expect(tuner.describe(&text[0], text.size()) == length && text[length] == 0, "length", "describe", (double)length);
  expect(strlen(little) == sizeof little - 1 && text.compare(0, 39, little) == 0, "what fits", "describe", (double)strlen(little));
  expect(text.find("forward, float32, rows from 2048 bytes, 25.2 to 33.6 MB, 2 arrays, 2 threads: sweep by sweep, around the cache; 1.0") == 0,
         text.c_str(), "describe", 0);
  printf("tunecheck: learned on %d machines\n", (int)(sizeof kMachines / sizeof *kMachines));
  return 0;
}
