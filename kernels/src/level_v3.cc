#define BN_LEVEL level_v3
#define BN_LEVEL_NAME "v3"
#include "level.inl"
const Level* v3_level() { return &BN_LEVEL::kLevel; }
