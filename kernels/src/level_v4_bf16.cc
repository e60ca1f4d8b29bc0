#define BN_LEVEL level_v4_bf16
#define BN_LEVEL_NAME "v4-bf16"
#include "level.inl"
const Level* v4_bf16_level() { return &BN_LEVEL::kLevel; }
