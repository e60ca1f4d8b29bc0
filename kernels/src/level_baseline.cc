#define BN_LEVEL level_baseline
#include "level.inl"
const Level* baseline_level() {
  static const Level level = {"baseline", BN_EVERY_TYPE};
  return &level;
}
