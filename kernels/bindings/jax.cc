// The kernels as XLA FFI handlers for the CPU, for JAX.
//
// The structures of XLA's FFI that a handler reads are declared here in their published layout (version 0.x), so that
// building needs no JAX and one binary serves its versions: it answers with the version that it is asked by. Operands and
// results are those of bindings/checked.h, but x, dy and y come without their dimensions of size 1: with them, XLA may
// choose another order of dimensions for a reshape before the call, and copy x to bring it back (bfloat16, JAX 0.10.2).
// The attribute `present` has a bit for each of the five dimensions that is there. What bindings/checked.h calls Extra
// are attributes too.
#include <cstring>

#include "checked.h"

namespace {

using batchnorm::Array;
using batchnorm::Extra;

struct Extension {
  size_t size;
  int type;  // 1 for a question about the handler
  Extension* next;
};
struct Version {
  size_t size;
  Extension* extension;
  int major, minor;
};
struct Metadata {
  size_t size;
  Version version;
  uint32_t traits;
  int64_t state_type;  // of no state: 0; absent in older versions
};
struct MetadataQuestion {
  Extension base;
  Metadata* metadata;
};
struct ErrorArguments {
  size_t size;
  Extension* extension;
  const char* message;
  int code;
};
struct Api {
  size_t size;
  Extension* extension;
  Version version;
  const void* internal;
  void* (*create_error)(ErrorArguments*);
};
struct Buffer {
  size_t size;
  Extension* extension;
  int type;
  void* data;
  int64_t rank;
  int64_t* dims;
};
struct Buffers {
  size_t size;
  Extension* extension;
  int64_t count;
  int* types;
  Buffer** buffers;
};
struct Name {
  const char* text;
  size_t length;
};
struct Scalar {
  int type;
  void* value;
};
struct Attributes {
  size_t size;
  Extension* extension;
  int64_t count;
  int* types;
  Name** names;
  Scalar** values;
};
struct Frame {
  size_t size;
  Extension* extension;
  const Api* api;
  void* context;
  int stage;
  Buffers arguments, results;
  Attributes attributes;
};

constexpr int kInvalidArgument = 3, kScalar = 3, kMost = 12;

int type_code(int xla_type) {
  switch (xla_type) {
    case 11: return BN_FLOAT32;
    case 12: return BN_FLOAT64;
    case 10: return BN_FLOAT16;
    case 16: return BN_BFLOAT16;
    default: return -1;
  }
}

void* refuse(const Frame* frame, const std::string& message) {
  ErrorArguments arguments = {sizeof(ErrorArguments), nullptr, message.c_str(), kInvalidArgument};
  return frame->api->create_error(&arguments);
}

void* answer(const Frame* frame, MetadataQuestion* question) {
  Metadata* metadata = question->metadata;
  metadata->version = {sizeof(Version), nullptr, frame->api->version.major, frame->api->version.minor};
  metadata->traits = 0;
  if (metadata->size >= sizeof(Metadata)) metadata->state_type = 0;
  return nullptr;
}

Extra extra_of(const Attributes& given, int64_t* present) {
  Extra extra;
  for (int64_t i = 0; i < given.count; ++i) {
    if (given.types[i] != kScalar) continue;
    const std::string name(given.names[i]->text, given.names[i]->length);
    const void* value = given.values[i]->value;
    if (name == "epsilon") std::memcpy(&extra.epsilon, value, sizeof extra.epsilon);
    if (name == "activation") std::memcpy(&extra.activation, value, sizeof extra.activation);
    if (name == "present") std::memcpy(present, value, sizeof *present);
    if (name == "frozen") extra.frozen = *(const unsigned char*)value != 0;
    if (name == "momentum") std::memcpy(&extra.momentum, value, sizeof extra.momentum);
    if (name == "unbiased") extra.unbiased = *(const unsigned char*)value != 0;
    if (name == "propagate") extra.propagate = *(const unsigned char*)value != 0;
  }
  return extra;
}

void gather(const Buffers& from, Array* to) {
  for (int64_t i = 0; i < from.count; ++i) {
    const Buffer* buffer = from.buffers[i];
    to[i].type = type_code(buffer->type);
    to[i].rank = (int)buffer->rank;
    to[i].dims = buffer->dims;
    to[i].data = buffer->data;
  }
}

// The five dimensions of an array that came without those of size 1; false where it has others than it should.
bool restore(Array& array, int64_t present, int64_t* dims) {
  int next = 0;
  for (int i = 0; i < 5; ++i) {
    const bool there = present >> i & 1;
    if (there && next == array.rank) return false;
    dims[i] = there ? array.dims[next++] : 1;
  }
  if (next != array.rank) return false;
  array.rank = 5;
  array.dims = dims;
  return true;
}

// `big` arguments and results come first and are like x.
void* handle(const Frame* frame, int arguments, int results, int big_arguments, int big_results,
             batchnorm::Function function) {
  for (Extension* extension = frame->extension; extension; extension = extension->next)
    if (extension->type == 1) return answer(frame, (MetadataQuestion*)extension);
  if (frame->arguments.count != arguments || frame->results.count != results)
    return refuse(frame, "batchnorm kernels: another number of operands or results");
  Array in[kMost], out[kMost];
  gather(frame->arguments, in);
  gather(frame->results, out);
  int64_t present = 31, dims[3][5];
  const Extra extra = extra_of(frame->attributes, &present);
  for (int i = 0; i < big_arguments + big_results; ++i)
    if (!restore(i < big_arguments ? in[i] : out[i - big_arguments], present, dims[i]))
      return refuse(frame, "batchnorm kernels: x must have the dimensions that are said to be present");
  for (int i = 0; i < big_results; ++i) {
    const int bytes = out[i].type == BN_FLOAT64 ? 8 : out[i].type == BN_FLOAT32 ? 4 : 2;
    bn_advise_huge(out[i].data, (size_t)out[i].elements() * bytes);
  }
  const std::string problem = function(in, out, extra);
  return problem.empty() ? nullptr : refuse(frame, problem);
}

}  // namespace

extern "C" {
BN_API void* batchnorm_moments(Frame* frame) { return handle(frame, 2, 4, 1, 0, batchnorm::moments); }
BN_API void* batchnorm_standardize(Frame* frame) { return handle(frame, 9, 1, 1, 1, batchnorm::standardize<false>); }
BN_API void* batchnorm_forward(Frame* frame) { return handle(frame, 4, 5, 1, 1, batchnorm::forward<false>); }
BN_API void* batchnorm_backward(Frame* frame) { return handle(frame, 10, 3, 2, 1, batchnorm::backward<false>); }
BN_API void* batchnorm_backward_sums(Frame* frame) { return handle(frame, 8, 2, 2, 0, batchnorm::backward_sums<false>); }
BN_API void* batchnorm_backward_input(Frame* frame) { return handle(frame, 12, 1, 2, 1, batchnorm::backward_input<false>); }
BN_API void* batchnorm_standardize_add(Frame* frame) { return handle(frame, 10, 1, 2, 1, batchnorm::standardize<true>); }
BN_API void* batchnorm_forward_add(Frame* frame) { return handle(frame, 5, 5, 2, 1, batchnorm::forward<true>); }
BN_API void* batchnorm_remember(Frame* frame) { return handle(frame, 8, 4, 0, 0, batchnorm::remember); }
}
