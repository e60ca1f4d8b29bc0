// The kernels as XLA FFI handlers for the CPU. Operands and results are the arguments of the C functions in order.
//
// x is [A, G, B, C, D]; weights are [A', G', B', D'] with each size full or 1, or of size 0 for none; vectors are
// [G, C], count is [G, 1]; an absent vector has size 0. Sizes and types are checked here: a kernel is never given
// memory that it may not touch.
#include <string>

#include "batchnorm.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

struct Call {
  int dtype = -1;
  int64_t dims[5] = {0, 0, 0, 0, 0};
  int64_t wdims[4] = {0, 0, 0, 0};
  ffi::DataType statistics = ffi::DataType::F32;
  std::string problem;

  explicit Call(const ffi::AnyBuffer& x) {
    switch (x.element_type()) {
      case ffi::DataType::F32: dtype = BN_FLOAT32; break;
      case ffi::DataType::F64: dtype = BN_FLOAT64; statistics = ffi::DataType::F64; break;
      case ffi::DataType::F16: dtype = BN_FLOAT16; break;
      case ffi::DataType::BF16: dtype = BN_BFLOAT16; break;
      default: problem = "x must be float16, bfloat16, float32 or float64"; return;
    }
    if (x.dimensions().size() != 5) {
      problem = "x must have five dimensions";
      return;
    }
    for (int i = 0; i < 5; ++i) dims[i] = x.dimensions()[i];
  }

  void fail(const char* name, const char* rule) {
    if (problem.empty()) problem = std::string(name) + " must " + rule;
  }

  // Like x in every size and in type.
  template <typename Buffer>
  void like_x(const Buffer& buffer, const ffi::AnyBuffer& x, const char* name) {
    bool same = buffer.element_type() == x.element_type() && buffer.dimensions().size() == 5;
    for (int i = 0; same && i < 5; ++i) same = buffer.dimensions()[i] == dims[i];
    if (!same) fail(name, "be like x");
  }

  // A vector of the statistics' type, or NULL for an absent one.
  template <typename Buffer>
  void* vector(Buffer&& buffer, const char* name, bool optional = false, bool per_group = false) {
    if (optional && buffer.element_count() == 0 && dims[1] * dims[3] != 0) return nullptr;
    const int64_t expected = dims[1] * (per_group ? 1 : dims[3]);
    if (buffer.element_type() != statistics) fail(name, "have the type of the statistics");
    if ((int64_t)buffer.element_count() != expected) fail(name, "have one element per group and channel");
    return buffer.untyped_data();
  }

  void* weights(const ffi::AnyBuffer& w) {
    if (w.dimensions().size() != 4) {
      fail("weights", "have four dimensions");
      return nullptr;
    }
    const int64_t full[4] = {dims[0], dims[1], dims[2], dims[4]};
    bool none = true;
    for (int i = 0; i < 4; ++i) none = none && w.dimensions()[i] == 0;
    if (none) return nullptr;
    if (w.element_type() != statistics) fail("weights", "have the type of the statistics");
    for (int i = 0; i < 4; ++i) {
      wdims[i] = w.dimensions()[i];
      if (wdims[i] != full[i] && wdims[i] != 1) fail("weights", "broadcast to x");
    }
    return w.untyped_data();
  }

  ffi::Error run(int code) const { return code == BN_OK ? ffi::Error::Success() : ffi::Error::InvalidArgument(bn_error(code)); }
  ffi::Error refuse() const { return ffi::Error::InvalidArgument("batchnorm kernels: " + problem); }
};

using In = ffi::AnyBuffer;
using Out = ffi::Result<ffi::AnyBuffer>;

ffi::Error moments(In x, In w, Out mean, Out remainder, Out variance, Out count) {
  Call call(x);
  void* weights = call.weights(w);
  void* out[4] = {call.vector(*mean, "mean"), call.vector(*remainder, "remainder"), call.vector(*variance, "variance"),
                  call.vector(*count, "count", false, true)};
  if (!call.problem.empty()) return call.refuse();
  return call.run(bn_moments(call.dtype, call.dims, x.untyped_data(), weights, call.wdims, out[0], out[1], out[2], out[3]));
}

ffi::Error standardize(In x, In w, In mean, In remainder, In variance, In scale, In offset, Out y, double epsilon,
                       int64_t activation) {
  Call call(x);
  void* weights = call.weights(w);
  void* in[5] = {call.vector(mean, "mean"), call.vector(remainder, "remainder", true), call.vector(variance, "variance"),
                 call.vector(scale, "scale", true), call.vector(offset, "offset", true)};
  call.like_x(*y, x, "y");
  if (!call.problem.empty()) return call.refuse();
  bn_advise_huge(y->untyped_data(), y->size_bytes());
  return call.run(bn_standardize(call.dtype, call.dims, x.untyped_data(), weights, call.wdims, in[0], in[1], in[2], epsilon,
                                 in[3], in[4], (int)activation, y->untyped_data()));
}

ffi::Error forward(In x, In w, In scale, In offset, Out y, Out mean, Out remainder, Out variance, Out count, double epsilon,
                   int64_t activation) {
  Call call(x);
  void* weights = call.weights(w);
  void* in[2] = {call.vector(scale, "scale", true), call.vector(offset, "offset", true)};
  void* out[4] = {call.vector(*mean, "mean"), call.vector(*remainder, "remainder"), call.vector(*variance, "variance"),
                  call.vector(*count, "count", false, true)};
  call.like_x(*y, x, "y");
  if (!call.problem.empty()) return call.refuse();
  bn_advise_huge(y->untyped_data(), y->size_bytes());
  return call.run(bn_forward(call.dtype, call.dims, x.untyped_data(), weights, call.wdims, epsilon, in[0], in[1],
                             (int)activation, out[0], out[1], out[2], out[3], y->untyped_data()));
}

ffi::Error backward(In x, In dy, In w, In mean, In remainder, In variance, In count, In scale, In offset, In live, Out dx,
                    Out sum_dy, Out sum_dy_xh, double epsilon, int64_t activation, bool frozen) {
  Call call(x);
  void* weights = call.weights(w);
  void* in[7] = {call.vector(count, "count", frozen, true), call.vector(mean, "mean"),
                 call.vector(remainder, "remainder", true), call.vector(variance, "variance"),
                 call.vector(scale, "scale", true), call.vector(offset, "offset", true), call.vector(live, "live", true)};
  void* sums[2] = {call.vector(*sum_dy, "sum_dy"), call.vector(*sum_dy_xh, "sum_dy_xh")};
  call.like_x(dy, x, "dy");
  call.like_x(*dx, x, "dx");
  if (!call.problem.empty()) return call.refuse();
  bn_advise_huge(dx->untyped_data(), dx->size_bytes());
  return call.run(bn_backward(call.dtype, call.dims, x.untyped_data(), dy.untyped_data(), weights, call.wdims, in[0], in[1],
                              in[2], in[3], epsilon, in[4], in[5], (int)activation, in[6], frozen, sums[0], sums[1],
                              dx->untyped_data()));
}

}  // namespace

#define BN_BUFFER Arg<ffi::AnyBuffer>()
#define BN_RESULT Ret<ffi::AnyBuffer>()
#define BN_HANDLER(name, function, binding)               \
  extern "C" BN_API XLA_FFI_Error* name(XLA_FFI_CallFrame*); \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, function, binding)

BN_HANDLER(batchnorm_moments, moments, ffi::Ffi::Bind().BN_BUFFER.BN_BUFFER.BN_RESULT.BN_RESULT.BN_RESULT.BN_RESULT);
BN_HANDLER(batchnorm_standardize, standardize,
           ffi::Ffi::Bind().BN_BUFFER.BN_BUFFER.BN_BUFFER.BN_BUFFER.BN_BUFFER.BN_BUFFER.BN_BUFFER.BN_RESULT
               .Attr<double>("epsilon").Attr<int64_t>("activation"));
BN_HANDLER(batchnorm_forward, forward,
           ffi::Ffi::Bind().BN_BUFFER.BN_BUFFER.BN_BUFFER.BN_BUFFER.BN_RESULT.BN_RESULT.BN_RESULT.BN_RESULT.BN_RESULT
               .Attr<double>("epsilon").Attr<int64_t>("activation"));
BN_HANDLER(batchnorm_backward, backward,
           ffi::Ffi::Bind().BN_BUFFER.BN_BUFFER.BN_BUFFER.BN_BUFFER.BN_BUFFER.BN_BUFFER.BN_BUFFER.BN_BUFFER.BN_BUFFER.BN_BUFFER
               .BN_RESULT.BN_RESULT.BN_RESULT.Attr<double>("epsilon").Attr<int64_t>("activation").Attr<bool>("frozen"));
