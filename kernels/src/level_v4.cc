#define BN_LEVEL level_v4
#define BN_LEVEL_NAME "v4"
#include "level.inl"
const Level* v4_level() { return &BN_LEVEL::kLevel; }
