#include "pool.h"

#include <stdlib.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#if !defined(_WIN32)
#include <dlfcn.h>
#include <pthread.h>
#endif
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

const int kMaxThreads = 64;
int64_t serial_bytes = 256 << 10;  // below: waking anyone costs more than the work
int64_t awake_bytes = 1536 << 10;  // below: only with workers that are awake
const int kSpinMicroseconds = 30;

void pause_briefly() {
#if defined(__SSE2__)
  _mm_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
  asm volatile("yield");
#endif
}

// Denormal and rounding modes are per thread: workers must compute as the caller does.
uint64_t float_modes() {
  uint64_t modes = 0;
#if defined(__SSE2__)
  modes = _mm_getcsr() & ~0x3fu;
#elif defined(__aarch64__) && defined(__GNUC__)
  asm volatile("mrs %0, fpcr" : "=r"(modes));
#endif
  return modes;
}
void set_float_modes(uint64_t modes) {
#if defined(__SSE2__)
  _mm_setcsr((unsigned)modes);
#elif defined(__aarch64__) && defined(__GNUC__)
  asm volatile("msr fpcr, %0" : : "r"(modes));
#else
  (void)modes;
#endif
}

struct alignas(64) Range {
  std::atomic<int64_t> next;
  int64_t end;
};

// One call's tasks, cut into one contiguous range per participant. Each begins with its own range, the same part of
// memory every time, and then helps the others.
struct Job {
  Task task;
  void* context;
  int participants;
  uint64_t modes;
  std::atomic<int> arrivals{0};
  Range range[kMaxThreads];

  Job(int64_t n, Task t, void* c, int p) : task(t), context(c), participants(p), modes(float_modes()) {
    for (int i = 0; i < p; i++) {
      range[i].next.store(n / p * i + n % p * i / p, std::memory_order_relaxed);
      range[i].end = n / p * (i + 1) + n % p * (i + 1) / p;
    }
  }
  void work(int self) {
    for (int k = 0; k < participants; k++) {
      Range& r = range[(self + k) % participants];
      while (r.next.load(std::memory_order_relaxed) < r.end) {
        const int64_t i = r.next.fetch_add(1, std::memory_order_relaxed);
        if (i >= r.end) break;
        task(context, i);
      }
    }
  }
};

struct Pool {
  std::mutex caller;  // one job at a time; another caller works alone meanwhile
  // The gate: bits 32.. are the job's number, bit 31 says open, bits 0..30 count the workers inside. One word, so that
  // a worker enters a job or does not, and cannot enter one job with another one's number.
  std::atomic<uint64_t> gate{0};
  std::atomic<Job*> job{nullptr};
  std::atomic<int> sleepers{0}, spinning{0};
  std::mutex sleep;
  std::condition_variable wake;
  int workers = 0;

  static const uint64_t kOpen = 1ull << 31, kInside = kOpen - 1;

  void worker(int self) {
    uint64_t seen = 0;
    for (;;) {
      uint64_t word = wait_for_job(seen);
      seen = word >> 32;
      while (word & kOpen && word >> 32 == seen)
        if (gate.compare_exchange_weak(word, word + 1, std::memory_order_acq_rel)) {
          Job* current = job.load(std::memory_order_relaxed);
          if (self < current->participants) {
            set_float_modes(current->modes);
            current->work(self);
          }
          gate.fetch_sub(1, std::memory_order_release);
          break;
        }
    }
  }

  uint64_t wait_for_job(uint64_t seen) {
    auto fresh = [&](uint64_t word) { return (word & kOpen) && word >> 32 != seen; };
    spinning.fetch_add(1, std::memory_order_relaxed);
    const auto begin = std::chrono::steady_clock::now();
    for (int turn = 1;; turn++) {
      const uint64_t word = gate.load(std::memory_order_acquire);
      if (fresh(word)) { spinning.fetch_sub(1, std::memory_order_relaxed); return word; }
      pause_briefly();
      if (turn % 16 == 0 && std::chrono::steady_clock::now() - begin > std::chrono::microseconds(kSpinMicroseconds)) break;
    }
    spinning.fetch_sub(1, std::memory_order_relaxed);
    std::unique_lock<std::mutex> lock(sleep);
    sleepers.fetch_add(1, std::memory_order_seq_cst);
    wake.wait(lock, [&] { return fresh(gate.load(std::memory_order_seq_cst)); });
    sleepers.fetch_sub(1, std::memory_order_relaxed);
    return gate.load(std::memory_order_acquire);
  }

  bool run(int64_t n, Task task, void* context, int64_t bytes, int threads) {
    std::unique_lock<std::mutex> lock(caller, std::try_to_lock);
    if (!lock.owns_lock()) return false;
    if (bytes < awake_bytes && workers > 0 && spinning.load(std::memory_order_relaxed) == 0) return false;
    if (workers < threads - 1 && !grow(threads - 1)) return false;
    Job current(n, task, context, threads);
    job.store(&current, std::memory_order_relaxed);
    const uint64_t number = ((gate.load(std::memory_order_relaxed) >> 32) + 1) & 0xffffffffu;
    gate.store(number << 32 | kOpen, std::memory_order_seq_cst);
    if (sleepers.load(std::memory_order_seq_cst) > 0) {
      { std::lock_guard<std::mutex> guard(sleep); }
      wake.notify_all();
    }
    current.work(0);
    gate.fetch_and(~kOpen, std::memory_order_acq_rel);  // no one enters any more
    for (int turn = 1; gate.load(std::memory_order_acquire) & kInside; turn++) {
      pause_briefly();
      if (turn % 4096 == 0) std::this_thread::yield();
    }
    return true;
  }

  bool grow(int wanted) {
    try {
      while (workers < wanted) {
        std::thread(&Pool::worker, this, workers + 1).detach();
        workers++;
      }
    } catch (...) {
      return workers > 0;
    }
    return true;
  }
};

// Never destroyed: workers may outlive the exit of main. After fork() the child has no workers and must not touch locks
// that a lost thread may hold, so it starts afresh in the same place.
alignas(Pool) unsigned char storage[sizeof(Pool)];
Pool& pool() { return *reinterpret_cast<Pool*>(storage); }
std::atomic<int> chosen_threads{0};
// Runs task(context, i) for every i in [0, n), together, and returns when all are done; null: the threads above.
typedef void (*Executor)(Task task, void* context, int64_t n);
std::atomic<Executor> chosen_executor{nullptr};
#if !defined(_WIN32)
void after_fork() {
  new (storage) Pool;
  chosen_executor.store(nullptr);  // a borrowed OpenMP team hangs in a forked child
}
#endif
struct Start {
  Start() {
    new (storage) Pool;
#if !defined(_WIN32)
    pthread_atfork(nullptr, nullptr, &after_fork);
#endif
  }
} start;

int usable_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned n = std::thread::hardware_concurrency();
  return n > 0 ? (int)n : 1;
}

int default_threads() {
  const char* text = getenv("OMP_NUM_THREADS");
  int n = text ? atoi(text) : 0;
  if (n <= 0) n = usable_cores();
  return n < kMaxThreads ? n : kMaxThreads;
}

#if !defined(_WIN32)
typedef void (*GompParallel)(void (*)(void*), void*, unsigned, unsigned);
std::atomic<GompParallel> gomp_parallel{nullptr};
std::atomic<int (*)()> gomp_thread{nullptr};

struct Borrowed { Task task; void* context; };
void run_on_openmp(Task task, void* context, int64_t n) {
  Borrowed borrowed{task, context};
  gomp_parallel.load()([](void* p) {
    Borrowed* b = (Borrowed*)p;
    b->task(b->context, gomp_thread.load()());
  }, &borrowed, (unsigned)n, 0);
}
#endif

}  // namespace

int pool_threads() {
  const int n = chosen_threads.load(std::memory_order_relaxed);
  if (n > 0) return n;
  static const int fallback = default_threads();
  return fallback;
}

void pool_set_threads(int n) { chosen_threads.store(n <= 0 ? 0 : n < kMaxThreads ? n : kMaxThreads); }
void pool_pretend_large(bool always) {
  serial_bytes = always ? 0 : 256 << 10;
  awake_bytes = always ? 0 : 1536 << 10;
}

int pool_borrow_openmp(const char* path) {
#if defined(_WIN32)
  (void)path;
  return 0;
#else
  void* library = dlopen(path ? path : "libgomp.so.1", RTLD_NOW | RTLD_NOLOAD);
  if (!library) return 0;
  GompParallel parallel = (GompParallel)dlsym(library, "GOMP_parallel");
  int (*thread)() = (int (*)())dlsym(library, "omp_get_thread_num");
  if (!parallel || !thread) return 0;
  gomp_parallel.store(parallel);
  gomp_thread.store(thread);
  chosen_executor.store(run_on_openmp);
  return 1;
#endif
}

void pool_run(int64_t n, Task task, void* context, int64_t bytes) {
  int threads = pool_threads();
  if (threads > n) threads = (int)n;
  if (threads > 1 && bytes >= serial_bytes) {
    if (Executor executor = chosen_executor.load(std::memory_order_relaxed)) {
      Job job(n, task, context, threads);
      executor([](void* p, int64_t self) {
        Job* j = (Job*)p;
        const uint64_t own = float_modes();
        set_float_modes(j->modes);
        j->work((int)self);
        set_float_modes(own);
      }, &job, threads);
      return;
    }
    if (pool().run(n, task, context, bytes, threads)) return;
  }
  for (int64_t i = 0; i < n; i++) task(context, i);
}
