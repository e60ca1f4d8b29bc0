#define BN_LEVEL level_baseline
#define BN_LEVEL_NAME "baseline"
#include "level.inl"
const Level* baseline_level() { return &BN_LEVEL::kLevel; }
