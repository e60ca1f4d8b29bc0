// Everything that is compiled once per instruction-set level.
#include "call.h"
#include "pool.h"
#include "simd.h"
#include "walk.inl"
#include "lanes.inl"
#include "moments.inl"
#include "moments_columns.inl"
#include "standardize.inl"
#include "backward.inl"
#include "drive.inl"
#define BN_EVERY_TYPE {BN_LEVEL::run_call<float>, BN_LEVEL::run_call<double>, BN_LEVEL::run_call<half>, BN_LEVEL::run_call<bfloat>}
