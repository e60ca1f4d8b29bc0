#define BN_LEVEL level_v4
#include "level.inl"
const Level* v4_level() {
  static const Level level = {"v4", BN_EVERY_TYPE};
  return &level;
}
