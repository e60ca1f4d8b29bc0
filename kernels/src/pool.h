// A small thread pool. run() calls task(context, i) once for every i in [0, n) and returns when all are done.
// The caller works too and never waits for work that nobody has begun: a sleeping or preempted worker costs nothing.
#pragma once
#include <stdint.h>

typedef void (*Task)(void* context, int64_t i);

void pool_run(int64_t n, Task task, void* context, int64_t bytes);
int pool_threads();
void pool_set_threads(int n);
int pool_borrow_openmp(const char* path);
void pool_pretend_large(bool always);  // for tests: share out small jobs too
