#define BN_LEVEL level_v4_bf16
#include "level.inl"
const Level* v4_bf16_level() {  // but for bfloat16, that is v4
  static const Level level = {"v4-bf16", {v4_level()->run[0], v4_level()->run[1], v4_level()->run[2],
                                          BN_LEVEL::run_call<bfloat>}};
  return &level;
}
