// The kernels as TensorFlow ops for the CPU, through TensorFlow's stable C API alone.
//
// The few functions of that API are declared here, so that building needs no TensorFlow; they resolve when
// tf.load_op_library loads this object into a process that has it. Operands and outputs are those of bindings/checked.h.
#include <cstring>
#include <initializer_list>

#include "checked.h"

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

using batchnorm::Array;
using batchnorm::Extra;

constexpr int kFloat = 1, kDouble = 2, kInt32 = 3, kBfloat16 = 14, kHalf = 19, kInvalidArgument = 3;
constexpr int kMost = 14, kMostDims = 8;  // operands of one op, and dimensions of one

int type_code(int tensorflow_type) {
  switch (tensorflow_type) {
    case kFloat: return BN_FLOAT32;
    case kDouble: return BN_FLOAT64;
    case kHalf: return BN_FLOAT16;
    case kBfloat16: return BN_BFLOAT16;
    default: return -1;
  }
}

// The operands and outputs of one run of an op.
class Run {
 public:
  Run(TF_OpKernelContext* context, int inputs) : context_(context), status_(TF_NewStatus()) {
    for (; count_ < inputs && ok(); ++count_) {
      TF_GetInput(context, count_, &tensors_[count_], status_);
      if (!ok()) return;
      in[count_] = describe(tensors_[count_], dims_[count_]);
    }
  }
  ~Run() {
    for (int i = 0; i < count_; ++i) TF_DeleteTensor(tensors_[i]);
    for (int i = 0; i < made_; ++i) TF_DeleteTensor(outputs_[i]);
    if (!ok()) TF_OpKernelContext_Failure(context_, status_);
    TF_DeleteStatus(status_);
  }
  Run(const Run&) = delete;

  bool ok() const { return TF_GetCode(status_) == 0; }
  void fail(const std::string& message) {
    if (ok() && !message.empty()) TF_SetStatus(status_, kInvalidArgument, message.c_str());
  }

  // epsilon and momentum are operands, the last: an attribute would round them to float32.
  double last(const char* name) {
    const TF_Tensor* t = tensors_[count_ - 1];
    double value = 0;
    if (TF_TensorType(t) != kDouble || in[count_ - 1].elements() != 1)
      fail(std::string("batchnorm kernels: ") + name + " must be a float64 scalar");
    else
      std::memcpy(&value, TF_TensorData(t), sizeof value);
    return value;
  }

  void add_like(int input) { add(in[input].dims, in[input].rank, TF_TensorType(tensors_[input])); }
  void add_vector(bool per_group) {
    const int64_t shape[2] = {in[0].dims[1], per_group ? 1 : in[0].dims[3]};
    add(shape, 2, in[0].type == BN_FLOAT64 ? kDouble : kFloat);
  }

  Array in[kMost], out[5];

 private:
  static Array describe(const TF_Tensor* t, int64_t* dims) {
    Array a;
    a.type = type_code(TF_TensorType(t));
    a.rank = TF_NumDims(t);
    if (a.rank > kMostDims) return Array();  // nothing here has so many: refused as of no known type
    for (int i = 0; i < a.rank; ++i) dims[i] = TF_Dim(t, i);
    a.dims = dims;
    a.data = TF_TensorData(t);
    return a;
  }
  void add(const int64_t* shape, int rank, int type) {
    if (!ok()) return;
    int64_t bytes = type == kDouble ? 8 : type == kFloat || type == kInt32 ? 4 : 2;
    for (int i = 0; i < rank; ++i) bytes *= shape[i];
    TF_Tensor* t = TF_AllocateOutput(context_, made_, type, shape, rank, (size_t)bytes, status_);
    if (!ok()) return;
    outputs_[made_] = t;
    out[made_] = describe(t, out_dims_[made_]);
    ++made_;
  }

  TF_OpKernelContext* context_;
  TF_Status* status_;
  TF_Tensor* tensors_[kMost] = {};
  TF_Tensor* outputs_[5] = {};
  int64_t dims_[kMost][kMostDims] = {}, out_dims_[5][kMostDims] = {};
  int count_ = 0, made_ = 0;
};

template <int inputs, int big, int vectors, int counts, batchnorm::Function function, bool epsilon = true>
void compute(void* extra, TF_OpKernelContext* context) {
  Run run(context, inputs);
  Extra how = *(Extra*)extra;
  if (run.in[0].rank != 5) run.fail("batchnorm kernels: x must have five dimensions");
  if (epsilon && run.ok()) how.epsilon = run.last("epsilon");
  for (int i = 0; i < big; ++i) run.add_like(0);
  for (int i = 0; i < vectors + counts && run.ok(); ++i) run.add_vector(i >= vectors);
  if (run.ok()) run.fail(function(run.in, run.out, how));
}

// The state's tensors are operands 4 to 7, and outputs of the same shapes and types.
void compute_remember(void* extra, TF_OpKernelContext* context) {
  Run run(context, 9);
  Extra how = *(Extra*)extra;
  if (run.ok()) how.momentum = run.last("momentum");
  for (int i = 4; i < 8; ++i) run.add_like(i);
  if (run.ok()) run.fail(batchnorm::remember(run.in, run.out, how));
}

void shapes_remember(TF_ShapeInferenceContext* context, TF_Status* status) {
  TF_ShapeHandle* shape = TF_NewShapeHandle();
  for (int i = 0; i < 4 && TF_GetCode(status) == 0; ++i) {
    TF_ShapeInferenceContextGetInput(context, 4 + i, shape, status);
    if (TF_GetCode(status) == 0) TF_ShapeInferenceContextSetOutput(context, i, shape, status);
  }
  TF_DeleteShapeHandle(shape);
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

struct Attribute {  // of an op, and where its value goes
  const char* name;
  int64_t Extra::*number;
  bool Extra::*flag;
  const char* type() const { return number ? ": int" : ": bool"; }
};
const Attribute kActivation = {"activation", &Extra::activation, nullptr}, kFrozen = {"frozen", nullptr, &Extra::frozen};
const Attribute kUnbiased = {"unbiased", nullptr, &Extra::unbiased}, kPropagate = {"propagate", nullptr, &Extra::propagate};

template <const Attribute*... attributes>
void* create(TF_OpKernelConstruction* construction) {
  Extra* extra = new Extra;
  TF_Status* status = TF_NewStatus();
  for (const Attribute* one : std::initializer_list<const Attribute*>{attributes...}) {
    if (TF_GetCode(status) != 0) break;
    unsigned char value = 0;
    if (one->number) {
      TF_OpKernelConstruction_GetAttrInt64(construction, one->name, &(extra->*one->number), status);
    } else {
      TF_OpKernelConstruction_GetAttrBool(construction, one->name, &value, status);
      extra->*one->flag = value != 0;
    }
  }
  if (TF_GetCode(status) != 0) TF_OpKernelConstruction_Failure(construction, status);
  TF_DeleteStatus(status);
  return extra;
}

void destroy(void* extra) { delete (Extra*)extra; }

struct Definition {
  const char* name;
  const int* types;               // of T, up to a 0
  const char* inputs[kMost + 1];  // names; what is like x has type T, the others U
  const char* outputs[6];
  const Attribute* attributes[3];
  void (*shape)(TF_ShapeInferenceContext*, TF_Status*);
  void* (*create)(TF_OpKernelConstruction*);
  void (*compute)(void*, TF_OpKernelContext*);
};

const int kElements[] = {kHalf, kBfloat16, kFloat, kDouble, 0}, kStatistics[] = {kFloat, kDouble, 0};

const Definition kDefinitions[] = {
    {"BatchnormMoments", kElements, {"x: T", "weights: U"}, {"mean: U", "remainder: U", "variance: U", "count: U"}, {},
     shapes<0, 3, 1>, create<>, compute<2, 0, 3, 1, batchnorm::moments, false>},
    {"BatchnormStandardize", kElements,
     {"x: T", "weights: U", "mean: U", "remainder: U", "variance: U", "count: U", "scale: U", "offset: U", "live: U",
      "epsilon: double"},
     {"y: T"}, {&kActivation, &kFrozen}, shapes<1, 0, 0>, create<&kActivation, &kFrozen>,
     compute<10, 1, 0, 0, batchnorm::standardize<false>>},
    {"BatchnormForward", kElements, {"x: T", "weights: U", "scale: U", "offset: U", "epsilon: double"},
     {"y: T", "mean: U", "remainder: U", "variance: U", "count: U"}, {&kActivation}, shapes<1, 3, 1>, create<&kActivation>,
     compute<5, 1, 3, 1, batchnorm::forward<false>>},
    {"BatchnormBackward", kElements,
     {"x: T", "dy: T", "weights: U", "mean: U", "remainder: U", "variance: U", "count: U", "scale: U", "offset: U", "live: U",
      "epsilon: double"},
     {"dx: T", "sum_dy: U", "sum_dy_xh: U"}, {&kActivation, &kFrozen}, shapes<1, 2, 0>, create<&kActivation, &kFrozen>,
     compute<11, 1, 2, 0, batchnorm::backward<false>>},
    {"BatchnormBackwardSums", kElements,
     {"x: T", "dy: T", "weights: U", "mean: U", "remainder: U", "variance: U", "scale: U", "offset: U", "epsilon: double"},
     {"sum_dy: U", "sum_dy_xh: U"}, {&kActivation}, shapes<0, 2, 0>, create<&kActivation>,
     compute<9, 0, 2, 0, batchnorm::backward_sums<false>>},
    {"BatchnormBackwardInput", kElements,
     {"x: T", "dy: T", "weights: U", "mean: U", "remainder: U", "variance: U", "count: U", "scale: U", "offset: U", "live: U",
      "sum_dy: U", "sum_dy_xh: U", "epsilon: double"},
     {"dx: T"}, {&kActivation}, shapes<1, 0, 0>, create<&kActivation>,
     compute<13, 1, 0, 0, batchnorm::backward_input<false>>},
    {"BatchnormStandardizeAdd", kElements,
     {"x: T", "residual: T", "weights: U", "mean: U", "remainder: U", "variance: U", "count: U", "scale: U", "offset: U",
      "live: U", "epsilon: double"},
     {"y: T"}, {&kActivation, &kFrozen}, shapes<1, 0, 0>, create<&kActivation, &kFrozen>,
     compute<11, 1, 0, 0, batchnorm::standardize<true>>},
    {"BatchnormForwardAdd", kElements, {"x: T", "residual: T", "weights: U", "scale: U", "offset: U", "epsilon: double"},
     {"y: T", "mean: U", "remainder: U", "variance: U", "count: U"}, {&kActivation}, shapes<1, 3, 1>, create<&kActivation>,
     compute<6, 1, 3, 1, batchnorm::forward<true>>},
    {"BatchnormBackwardAdd", kElements,
     {"x: T", "dy: T", "y: T", "weights: U", "mean: U", "remainder: U", "variance: U", "count: U", "scale: U", "offset: U",
      "live: U", "epsilon: double"},
     {"dx: T", "d_residual: T", "sum_dy: U", "sum_dy_xh: U"}, {&kActivation, &kFrozen}, shapes<2, 2, 0>,
     create<&kActivation, &kFrozen>, compute<12, 2, 2, 0, batchnorm::backward<true>>},
    {"BatchnormBackwardSumsAdd", kElements,
     {"x: T", "dy: T", "y: T", "weights: U", "mean: U", "remainder: U", "variance: U", "scale: U", "offset: U",
      "epsilon: double"},
     {"sum_dy: U", "sum_dy_xh: U"}, {&kActivation}, shapes<0, 2, 0>, create<&kActivation>,
     compute<10, 0, 2, 0, batchnorm::backward_sums<true>>},
    {"BatchnormBackwardInputAdd", kElements,
     {"x: T", "dy: T", "y: T", "weights: U", "mean: U", "remainder: U", "variance: U", "count: U", "scale: U", "offset: U",
      "live: U", "sum_dy: U", "sum_dy_xh: U", "epsilon: double"},
     {"dx: T", "d_residual: T"}, {&kActivation}, shapes<2, 0, 0>, create<&kActivation>,
     compute<14, 2, 0, 0, batchnorm::backward_input<true>>},
    {"BatchnormRemember", kStatistics,
     {"mean: T", "remainder: T", "variance: T", "count: T", "moving_mean: T", "moving_variance: T", "skipped_updates: int32",
      "num_updates: int32", "momentum: double"},
     {"new_moving_mean: T", "new_moving_variance: T", "new_skipped_updates: int32", "new_num_updates: int32"},
     {&kUnbiased, &kPropagate}, shapes_remember, create<&kUnbiased, &kPropagate>, compute_remember},
};

struct Register {
  Register() {
    TF_Status* status = TF_NewStatus();
    for (const Definition& op : kDefinitions) {
      TF_OpDefinitionBuilder* builder = TF_NewOpDefinitionBuilder(op.name);
      if (op.types == kElements) {
        TF_OpDefinitionBuilderAddAttr(builder, "T: {half, bfloat16, float, double}");
        TF_OpDefinitionBuilderAddAttr(builder, "U: {float, double}");
      } else {
        TF_OpDefinitionBuilderAddAttr(builder, "T: {float, double}");
      }
      for (const Attribute* const* one = op.attributes; *one; ++one)
        TF_OpDefinitionBuilderAddAttr(builder, (std::string((*one)->name) + (*one)->type()).c_str());
      for (const char* const* spec = op.inputs; *spec; ++spec) TF_OpDefinitionBuilderAddInput(builder, *spec);
      for (const char* const* spec = op.outputs; *spec; ++spec) TF_OpDefinitionBuilderAddOutput(builder, *spec);
      TF_OpDefinitionBuilderSetShapeInferenceFunction(builder, op.shape);
      TF_RegisterOpDefinition(builder, status);
      for (const int* type = op.types; *type; ++type) {
        TF_KernelBuilder* kernel = TF_NewKernelBuilder(op.name, "CPU", op.create, op.compute, destroy);
        TF_KernelBuilder_TypeConstraint(kernel, "T", *type, status);
        TF_RegisterKernelBuilder(op.name, kernel, status);
      }
    }
    TF_DeleteStatus(status);
  }
} const registered;

}  // namespace
