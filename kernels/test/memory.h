// Buffers that notice: an inaccessible page on either side, canaries in the rest.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

class Buffer {
 public:
  // `size` bytes that end at the guard page, or begin `from` bytes after the one before.
  Buffer(size_t size, bool at_end, size_t from) : size_(size) {
    const size_t page = 4096;
    inner_ = (size + from + page) / page * page;
    base_ = (unsigned char*)mmap(nullptr, inner_ + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base_ == MAP_FAILED || mprotect(base_ + page, inner_, PROT_READ | PROT_WRITE)) { perror("mmap"); exit(2); }
    first_ = base_ + page;
    memset(first_, 0xA5, inner_);
    data_ = at_end ? first_ + inner_ - size : first_ + from;
  }
  ~Buffer() { munmap(base_, inner_ + 2 * 4096); }
  Buffer(const Buffer&) = delete;
  void* data() const { return data_; }
  size_t size() const { return size_; }
  bool untouched() const {
    for (unsigned char* p = first_; p < first_ + inner_; p++) if (*p != 0xA5) return false;
    return true;
  }
  bool intact() const {
    for (unsigned char* p = first_; p < data_; p++) if (*p != 0xA5) return false;
    for (unsigned char* p = data_ + size_; p < first_ + inner_; p++) if (*p != 0xA5) return false;
    return true;
  }

 private:
  unsigned char *base_, *first_, *data_;
  size_t inner_, size_;
};
