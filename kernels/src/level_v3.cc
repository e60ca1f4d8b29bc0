#define BN_LEVEL level_v3
#include "level.inl"
const Level* v3_level() {
  static const Level level = {"v3", BN_EVERY_TYPE};
  return &level;
}
