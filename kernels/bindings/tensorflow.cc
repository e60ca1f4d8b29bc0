// The kernels as TensorFlow ops for the CPU, through TensorFlow's stable C API alone.
//
// The few functions of that API are declared here, so that building needs no TensorFlow; they resolve when
// tf.load_op_library loads this object into a process that has it. x is [A, G, B, C, D]; weights are [A', G', B', D']
// or empty; vectors are [G, C], count is [G, 1]; an absent vector is empty. Sizes and types are checked here: a kernel is
// never given memory that it may not touch.
#include <cstring>
#include <string>

#include "batchnorm.h"

extern "C" {
struct TF_Status;
struct TF_Tensor;
struct TF_OpDefinitionBuilder;
struct TF_ShapeInferenceContext;
struct TF_ShapeHandle;
struct TF_KernelBuilder;
struct TF_OpKernelConstruction;
struct TF_OpKernelContext;
TF_Status* TF_NewStatus(void);
void TF_DeleteStatus(TF_Status*);
void TF_SetStatus(TF_Status*, int code, const char* message);
int TF_GetCode(const TF_Status*);
TF_OpDefinitionBuilder* TF_NewOpDefinitionBuilder(const char* name);
void TF_OpDefinitionBuilderAddAttr(TF_OpDefinitionBuilder*, const char* spec);
void TF_OpDefinitionBuilderAddInput(TF_OpDefinitionBuilder*, const char* spec);
void TF_OpDefinitionBuilderAddOutput(TF_OpDefinitionBuilder*, const char* spec);
void TF_OpDefinitionBuilderSetShapeInferenceFunction(TF_OpDefinitionBuilder*,
                                                     void (*)(TF_ShapeInferenceContext*, TF_Status*));
void TF_RegisterOpDefinition(TF_OpDefinitionBuilder*, TF_Status*);
TF_ShapeHandle* TF_NewShapeHandle(void);
void TF_DeleteShapeHandle(TF_ShapeHandle*);
int TF_ShapeInferenceContextRankKnown(TF_ShapeInferenceContext*, TF_ShapeHandle*);
void TF_ShapeInferenceContextGetInput(TF_ShapeInferenceContext*, int, TF_ShapeHandle*, TF_Status*);
void TF_ShapeInferenceContextSetOutput(TF_ShapeInferenceContext*, int, TF_ShapeHandle*, TF_Status*);
void TF_ShapeInferenceContextSubshape(TF_ShapeInferenceContext*, TF_ShapeHandle*, int64_t start, int64_t end,
                                      TF_ShapeHandle* result, TF_Status*);
void TF_ShapeInferenceContextConcatenateShapes(TF_ShapeInferenceContext*, TF_ShapeHandle*, TF_ShapeHandle*,
                                               TF_ShapeHandle* result, TF_Status*);
TF_ShapeHandle* TF_ShapeInferenceContextVectorFromSize(TF_ShapeInferenceContext*, size_t size);
TF_KernelBuilder* TF_NewKernelBuilder(const char* op, const char* device, void* (*create)(TF_OpKernelConstruction*),
                                      void (*compute)(void*, TF_OpKernelContext*), void (*destroy)(void*));
void TF_KernelBuilder_TypeConstraint(TF_KernelBuilder*, const char* attribute, int type, TF_Status*);
void TF_RegisterKernelBuilder(const char* name, TF_KernelBuilder*, TF_Status*);
void TF_OpKernelConstruction_GetAttrInt64(TF_OpKernelConstruction*, const char* name, int64_t*, TF_Status*);
void TF_OpKernelConstruction_GetAttrBool(TF_OpKernelConstruction*, const char* name, unsigned char*, TF_Status*);
void TF_OpKernelConstruction_Failure(TF_OpKernelConstruction*, TF_Status*);
void TF_OpKernelContext_Failure(TF_OpKernelContext*, TF_Status*);
void TF_GetInput(TF_OpKernelContext*, int, TF_Tensor**, TF_Status*);
TF_Tensor* TF_AllocateOutput(TF_OpKernelContext*, int, int dtype, const int64_t* dims, int rank, size_t bytes, TF_Status*);
void TF_DeleteTensor(TF_Tensor*);
int TF_TensorType(const TF_Tensor*);
int TF_NumDims(const TF_Tensor*);
int64_t TF_Dim(const TF_Tensor*, int);
int64_t TF_TensorElementCount(const TF_Tensor*);
void* TF_TensorData(const TF_Tensor*);
}

namespace {

constexpr int kFloat = 1, kDouble = 2, kBfloat16 = 14, kHalf = 19, kInvalidArgument = 3;
constexpr int kMost = 11;  // operands of one op

struct Attributes {
  int64_t activation = BN_NONE;
  unsigned char frozen = 0;
};

// One run of an op: its operands, checked, and its outputs.
class Run {
 public:
  Run(TF_OpKernelContext* context, int inputs) : context_(context), status_(TF_NewStatus()) {
    for (; count_ < inputs && ok(); ++count_) TF_GetInput(context, count_, &tensors_[count_], status_);
    if (!ok()) return;
    const TF_Tensor* x = tensors_[0];
    switch (TF_TensorType(x)) {
      case kFloat: dtype = BN_FLOAT32; break;
      case kDouble: dtype = BN_FLOAT64; statistics_ = kDouble; break;
      case kHalf: dtype = BN_FLOAT16; break;
      default: dtype = BN_BFLOAT16;
    }
    width_ = dtype == BN_FLOAT64 ? 8 : dtype == BN_FLOAT32 ? 4 : 2;
    if (TF_NumDims(x) != 5) fail("x", "have five dimensions");
    for (int i = 0; ok() && i < 5; ++i) dims[i] = TF_Dim(x, i);
  }
  ~Run() {
    for (int i = 0; i < count_; ++i) TF_DeleteTensor(tensors_[i]);
    for (int i = 0; i < made_; ++i) TF_DeleteTensor(outputs_[i]);
    if (!ok()) TF_OpKernelContext_Failure(context_, status_);
    TF_DeleteStatus(status_);
  }
  Run(const Run&) = delete;

  bool ok() const { return TF_GetCode(status_) == 0; }
  void fail(const char* name, const char* rule) {
    if (ok()) TF_SetStatus(status_, kInvalidArgument, ("batchnorm kernels: " + std::string(name) + " must " + rule).c_str());
  }
  void finish(int code) {
    if (code != BN_OK && ok()) TF_SetStatus(status_, kInvalidArgument, bn_error(code));
  }

  void* data(int i) const { return TF_TensorData(tensors_[i]); }
  void* like_x(int i, const char* name) {
    const TF_Tensor* t = tensors_[i];
    bool same = TF_TensorType(t) == TF_TensorType(tensors_[0]) && TF_NumDims(t) == 5;
    for (int k = 0; same && k < 5; ++k) same = TF_Dim(t, k) == dims[k];
    if (!same) fail(name, "be like x");
    return data(i);
  }
  void* weights(int i) {
    const TF_Tensor* t = tensors_[i];
    if (TF_NumDims(t) != 4) {
      fail("weights", "have four dimensions");
      return nullptr;
    }
    const int64_t full[4] = {dims[0], dims[1], dims[2], dims[4]};
    bool none = true;
    for (int k = 0; k < 4; ++k) {
      wdims[k] = TF_Dim(t, k);
      none = none && wdims[k] == 0;
    }
    if (none) return nullptr;
    if (TF_TensorType(t) != statistics_) fail("weights", "have the type of the statistics");
    for (int k = 0; k < 4; ++k)
      if (wdims[k] != full[k] && wdims[k] != 1) fail("weights", "broadcast to x");
    return TF_TensorData(t);
  }
  void* vector(int i, const char* name, bool optional = false, bool per_group = false) {
    const TF_Tensor* t = tensors_[i];
    const int64_t expected = dims[1] * (per_group ? 1 : dims[3]), found = TF_TensorElementCount(t);
    if (optional && found == 0 && expected != 0) return nullptr;
    if (TF_TensorType(t) != statistics_) fail(name, "have the type of the statistics");
    if (found != expected) fail(name, "have one element per group and channel");
    return TF_TensorData(t);
  }
  double epsilon(int i) {
    const TF_Tensor* t = tensors_[i];
    if (TF_TensorType(t) != kDouble || TF_TensorElementCount(t) != 1) {
      fail("epsilon", "be a float64 scalar");
      return 0;
    }
    double value;
    std::memcpy(&value, TF_TensorData(t), sizeof value);
    return value;
  }

  void* output(const int64_t* shape, int rank, int type, int64_t bytes_each) {
    if (!ok()) return nullptr;
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= shape[i];
    TF_Tensor* t = TF_AllocateOutput(context_, made_, type, shape, rank, (size_t)(n * bytes_each), status_);
    if (!ok()) return nullptr;
    outputs_[made_++] = t;
    return TF_TensorData(t);
  }
  void* big_output() { return output(dims, 5, TF_TensorType(tensors_[0]), width_); }
  void* vector_output(bool per_group = false) {
    const int64_t shape[2] = {dims[1], per_group ? 1 : dims[3]};
    return output(shape, 2, statistics_, statistics_ == kDouble ? 8 : 4);
  }

  int dtype = -1;
  int64_t dims[5] = {0, 0, 0, 0, 0}, wdims[4] = {0, 0, 0, 0};

 private:
  TF_OpKernelContext* context_;
  TF_Status* status_;
  TF_Tensor* tensors_[kMost] = {};
  TF_Tensor* outputs_[5] = {};
  int count_ = 0, made_ = 0, statistics_ = kFloat, width_ = 4;
};

void moments(void*, TF_OpKernelContext* context) {
  Run run(context, 2);
  void* w = run.ok() ? run.weights(1) : nullptr;
  void* out[4];
  for (int i = 0; i < 4; ++i) out[i] = run.vector_output(i == 3);
  if (run.ok()) run.finish(bn_moments(run.dtype, run.dims, run.data(0), w, run.wdims, out[0], out[1], out[2], out[3]));
}

void standardize(void* attributes, TF_OpKernelContext* context) {
  Run run(context, 10);
  if (!run.ok()) return;
  void* w = run.weights(1);
  void *mean = run.vector(2, "mean"), *remainder = run.vector(3, "remainder", true), *variance = run.vector(4, "variance");
  void *scale = run.vector(6, "scale", true), *offset = run.vector(7, "offset", true);
  const double epsilon = run.epsilon(9);
  void* y = run.big_output();
  if (run.ok())
    run.finish(bn_standardize(run.dtype, run.dims, run.data(0), w, run.wdims, mean, remainder, variance, epsilon, scale,
                              offset, (int)((Attributes*)attributes)->activation, y));
}

void forward(void* attributes, TF_OpKernelContext* context) {
  Run run(context, 5);
  if (!run.ok()) return;
  void* w = run.weights(1);
  void *scale = run.vector(2, "scale", true), *offset = run.vector(3, "offset", true);
  const double epsilon = run.epsilon(4);
  void* y = run.big_output();
  void* out[4];
  for (int i = 0; i < 4; ++i) out[i] = run.vector_output(i == 3);
  if (run.ok())
    run.finish(bn_forward(run.dtype, run.dims, run.data(0), w, run.wdims, epsilon, scale, offset,
                          (int)((Attributes*)attributes)->activation, out[0], out[1], out[2], out[3], y));
}

void backward(void* attributes, TF_OpKernelContext* context) {
  const Attributes* given = (Attributes*)attributes;
  Run run(context, 11);
  if (!run.ok()) return;
  void *dy = run.like_x(1, "dy"), *w = run.weights(2);
  void *mean = run.vector(3, "mean"), *remainder = run.vector(4, "remainder", true), *variance = run.vector(5, "variance");
  void* count = run.vector(6, "count", given->frozen, true);
  void *scale = run.vector(7, "scale", true), *offset = run.vector(8, "offset", true), *live = run.vector(9, "live", true);
  const double epsilon = run.epsilon(10);
  void* dx = run.big_output();
  void *sum_dy = run.vector_output(), *sum_dy_xh = run.vector_output();
  if (run.ok())
    run.finish(bn_backward(run.dtype, run.dims, run.data(0), dy, w, run.wdims, count, mean, remainder, variance, epsilon,
                           scale, offset, (int)given->activation, live, given->frozen, sum_dy, sum_dy_xh, dx));
}

// Outputs of x's shape first, then vectors [G, C], then, where there is one, count [G, 1].
template <int big, int vectors, int counts>
void shapes(TF_ShapeInferenceContext* context, TF_Status* status) {
  TF_ShapeHandle *x = TF_NewShapeHandle(), *g = TF_NewShapeHandle(), *c = TF_NewShapeHandle(), *gc = TF_NewShapeHandle();
  TF_ShapeInferenceContextGetInput(context, 0, x, status);
  int i = 0;
  for (; i < big && TF_GetCode(status) == 0; ++i) TF_ShapeInferenceContextSetOutput(context, i, x, status);
  if (TF_GetCode(status) == 0 && TF_ShapeInferenceContextRankKnown(context, x)) {
    TF_ShapeInferenceContextSubshape(context, x, 1, 2, g, status);
    if (TF_GetCode(status) == 0) TF_ShapeInferenceContextSubshape(context, x, 3, 4, c, status);
    if (TF_GetCode(status) == 0) TF_ShapeInferenceContextConcatenateShapes(context, g, c, gc, status);
    for (; i < big + vectors && TF_GetCode(status) == 0; ++i) TF_ShapeInferenceContextSetOutput(context, i, gc, status);
    if (counts && TF_GetCode(status) == 0) {
      TF_ShapeHandle *one = TF_ShapeInferenceContextVectorFromSize(context, 1), *g1 = TF_NewShapeHandle();
      TF_ShapeInferenceContextConcatenateShapes(context, g, one, g1, status);
      if (TF_GetCode(status) == 0) TF_ShapeInferenceContextSetOutput(context, i, g1, status);
      TF_DeleteShapeHandle(one);
      TF_DeleteShapeHandle(g1);
    }
  }
  for (TF_ShapeHandle* handle : {x, g, c, gc}) TF_DeleteShapeHandle(handle);
}

template <bool activation, bool frozen>
void* create(TF_OpKernelConstruction* construction) {
  Attributes* attributes = new Attributes;
  TF_Status* status = TF_NewStatus();
  if (activation) TF_OpKernelConstruction_GetAttrInt64(construction, "activation", &attributes->activation, status);
  if (frozen && TF_GetCode(status) == 0)
    TF_OpKernelConstruction_GetAttrBool(construction, "frozen", &attributes->frozen, status);
  if (TF_GetCode(status) != 0) TF_OpKernelConstruction_Failure(construction, status);
  TF_DeleteStatus(status);
  return attributes;
}

void destroy(void* attributes) { delete (Attributes*)attributes; }

struct Definition {
  const char* name;
  const char* inputs[kMost + 1];  // names; x and dy have type T, the others U
  const char* outputs[6];
  bool activation, frozen;
  void (*shape)(TF_ShapeInferenceContext*, TF_Status*);
  void* (*create)(TF_OpKernelConstruction*);
  void (*compute)(void*, TF_OpKernelContext*);
};

const Definition kDefinitions[] = {
    {"BatchnormMoments", {"x: T", "weights: U"}, {"mean: U", "remainder: U", "variance: U", "count: U"}, false, false,
     shapes<0, 3, 1>, create<false, false>, moments},
    {"BatchnormStandardize",
     {"x: T", "weights: U", "mean: U", "remainder: U", "variance: U", "count: U", "scale: U", "offset: U", "live: U",
      "epsilon: double"},
     {"y: T"}, true, true, shapes<1, 0, 0>, create<true, true>, standardize},
    {"BatchnormForward", {"x: T", "weights: U", "scale: U", "offset: U", "epsilon: double"},
     {"y: T", "mean: U", "remainder: U", "variance: U", "count: U"}, true, false, shapes<1, 3, 1>, create<true, false>,
     forward},
    {"BatchnormBackward",
     {"x: T", "dy: T", "weights: U", "mean: U", "remainder: U", "variance: U", "count: U", "scale: U", "offset: U", "live: U",
      "epsilon: double"},
     {"dx: T", "sum_dy: U", "sum_dy_xh: U"}, true, true, shapes<1, 2, 0>, create<true, true>, backward},
};

struct Register {
  Register() {
    TF_Status* status = TF_NewStatus();
    for (const Definition& op : kDefinitions) {
      TF_OpDefinitionBuilder* builder = TF_NewOpDefinitionBuilder(op.name);
      TF_OpDefinitionBuilderAddAttr(builder, "T: {half, bfloat16, float, double}");
      TF_OpDefinitionBuilderAddAttr(builder, "U: {float, double}");
      if (op.activation) TF_OpDefinitionBuilderAddAttr(builder, "activation: int");
      if (op.frozen) TF_OpDefinitionBuilderAddAttr(builder, "frozen: bool");
      for (const char* const* spec = op.inputs; *spec; ++spec) TF_OpDefinitionBuilderAddInput(builder, *spec);
      for (const char* const* spec = op.outputs; *spec; ++spec) TF_OpDefinitionBuilderAddOutput(builder, *spec);
      TF_OpDefinitionBuilderSetShapeInferenceFunction(builder, op.shape);
      TF_RegisterOpDefinition(builder, status);
      for (int type : {kHalf, kBfloat16, kFloat, kDouble}) {
        TF_KernelBuilder* kernel = TF_NewKernelBuilder(op.name, "CPU", op.create, op.compute, destroy);
        TF_KernelBuilder_TypeConstraint(kernel, "T", type, status);
        TF_RegisterKernelBuilder(op.name, kernel, status);
      }
    }
    TF_DeleteStatus(status);
  }
} const registered;

}  // namespace
