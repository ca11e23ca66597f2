// SPDX-License-Identifier: Apache-2.0
// Every instruction the machine knows, by its name in PTX.
#include "tensor.h"

namespace ptx {
namespace {

void nothing(Machine&, Warp&, const Instruction&, uint32_t) {}

#define COMPARISONS(T, t)                                                             \
  {"setp.eq." t, binary<bool, T, eq<T>>}, {"setp.ne." t, binary<bool, T, ne<T>>},     \
      {"setp.lt." t, binary<bool, T, lt<T>>}, {"setp.le." t, binary<bool, T, le<T>>}, \
      {"setp.gt." t, binary<bool, T, gt<T>>}, {                                       \
    "setp.ge." t, binary<bool, T, ge<T>>                                              \
  }
#define UNORDERED(T, t)                                   \
  {"setp.equ." t, binary<bool, T, or_nan<T, eq<T>>>},     \
      {"setp.neu." t, binary<bool, T, or_nan<T, ne<T>>>}, \
      {"setp.ltu." t, binary<bool, T, or_nan<T, lt<T>>>}, \
      {"setp.leu." t, binary<bool, T, or_nan<T, le<T>>>}, \
      {"setp.gtu." t, binary<bool, T, or_nan<T, gt<T>>>}, \
      {"setp.geu." t, binary<bool, T, or_nan<T, ge<T>>>}, \
      {"setp.nan." t, binary<bool, T, any_nan<T>>}, {     \
    "setp.num." t, binary<bool, T, no_nan<T>>             \
  }
#define INTEGERS(T, t)                                                               \
  {"add." t, binary<T, T, add<T>>}, {"sub." t, binary<T, T, sub<T>>},                \
      {"mul.lo." t, binary<T, T, mul<T>>}, {"div." t, binary<T, T, quotient<T>>},    \
      {"rem." t, binary<T, T, remainder_of<T>>}, {"min." t, binary<T, T, least<T>>}, \
      {"max." t, binary<T, T, most<T>>}, {                                           \
    "shr." t, shift<T, right<T>>                                                     \
  }
#define BITWISE(T, t)                                                              \
  {"and." t, binary<T, T, both<T>>}, {"or." t, binary<T, T, either<T>>},           \
      {"xor." t, binary<T, T, differ<T>>}, {"not." t, unary<T, T, inverted<T>>}, { \
    "shl." t, shift<T, left<T>>                                                    \
  }
#define FLOATS(T, t)                                                                \
  {"add." t, binary<T, T, add<T>>}, {"add.rn." t, binary<T, T, add<T>>},            \
      {"sub." t, binary<T, T, sub<T>>}, {"mul." t, binary<T, T, mul<T>>},           \
      {"mul.rn." t, binary<T, T, mul<T>>}, {"div.rn." t, binary<T, T, divided<T>>}, \
      {"min." t, binary<T, T, fleast<T>>}, {"max." t, binary<T, T, fmost<T>>},      \
      {"neg." t, unary<T, T, negative<T>>}, {"abs." t, unary<T, T, absolute<T>>},   \
      {"fma.rn." t, ternary<T, T, fused<T>>}, {                                     \
    "sqrt.rn." t, unary<T, T, root<T>>                                              \
  }
#define MOVES(T, t) \
  {"mov." t, unary<T, T, same<T>>}, { "selp." t, choose<T> }
#define MEMORY(space, load, store)                                                              \
  {"ld." space ".b8", load<uint8_t, 1>}, {"ld." space ".b16", load<uint16_t, 1>},               \
      {"ld." space ".b32", load<uint32_t, 1>}, {"ld." space ".b64", load<uint64_t, 1>},         \
      {"ld." space ".v2.b8", load<uint8_t, 2>}, {"ld." space ".v4.b8", load<uint8_t, 4>},       \
      {"ld." space ".v2.b16", load<uint16_t, 2>}, {"ld." space ".v4.b16", load<uint16_t, 4>},   \
      {"ld." space ".v2.b32", load<uint32_t, 2>}, {"ld." space ".v4.b32", load<uint32_t, 4>},   \
      {"ld." space ".v2.b64", load<uint64_t, 2>}, {"st." space ".b8", store<uint8_t, 1>},       \
      {"st." space ".b16", store<uint16_t, 1>}, {"st." space ".b32", store<uint32_t, 1>},       \
      {"st." space ".b64", store<uint64_t, 1>}, {"st." space ".v2.b8", store<uint8_t, 2>},      \
      {"st." space ".v4.b8", store<uint8_t, 4>}, {"st." space ".v2.b16", store<uint16_t, 2>},   \
      {"st." space ".v4.b16", store<uint16_t, 4>}, {"st." space ".v2.b32", store<uint32_t, 2>}, \
      {"st." space ".v4.b32", store<uint32_t, 4>}, {                                            \
    "st." space ".v2.b64", store<uint64_t, 2>                                                   \
  }
// "held": the left factor is in registers.
#define PRODUCTS(N)                                                     \
  {"wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16",          \
   multiply_async<from_bf16, N, false>},                                \
      {"wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.f16.f16",        \
       multiply_async<from_half, N, false>},                            \
      {"held.wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16", \
       multiply_async<from_bf16, N, true>},                             \
  {                                                                     \
    "held.wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.f16.f16",      \
        multiply_async<from_half, N, true>                              \
  }

#define TENSOR(N)                                                               \
  {"tcgen05.ld.sync.aligned.32x32b.x" #N ".b32", load_tensor<N, false>},        \
      {"tcgen05.ld.sync.aligned.16x32bx2.x" #N ".b32", load_tensor<N, true>},   \
      {"tcgen05.st.sync.aligned.32x32b.x" #N ".b32", store_tensor<N, false>}, { \
    "tcgen05.st.sync.aligned.16x32bx2.x" #N ".b32", store_tensor<N, true>       \
  }

}  // namespace

const std::vector<Named>& table() {
  static const std::vector<Named> all = {
      {"bra", nothing},
      {"bar.sync", nothing},
      {"ret", nothing},
      {"trap", nothing},  // enum Control
      {"bar.warp.sync", meet_in_warp},
      {"fence.proxy.async.shared::cta", nothing},
      {"wgmma.fence.sync.aligned", nothing},
      INTEGERS(int16_t, "s16"),
      INTEGERS(uint16_t, "u16"),
      INTEGERS(int32_t, "s32"),
      INTEGERS(uint32_t, "u32"),
      INTEGERS(int64_t, "s64"),
      INTEGERS(uint64_t, "u64"),
      BITWISE(uint16_t, "b16"),
      BITWISE(uint32_t, "b32"),
      BITWISE(uint64_t, "b64"),
      {"and.pred", binary<bool, bool, both<bool>>},
      {"or.pred", binary<bool, bool, either<bool>>},
      {"xor.pred", binary<bool, bool, differ<bool>>},
      {"not.pred", unary<bool, bool, inverted_bool>},
      {"neg.s32", unary<int32_t, int32_t, negative<int32_t>>},
      {"neg.s64", unary<int64_t, int64_t, negative<int64_t>>},
      {"min.relu.s32", binary<int32_t, int32_t, least_positive>},
      {"abs.s32", unary<int32_t, int32_t, absolute<int32_t>>},
      FLOATS(float, "f32"),
      FLOATS(double, "f64"),
      {"fma.rn.f32.bf16", ternary<float, uint16_t, fused_mixed<from_bf16>>},
      {"fma.rn.f32.f16", ternary<float, uint16_t, fused_mixed<from_half>>},
      {"add.rn.f32.bf16", add_mixed<from_bf16, 1>},
      {"add.rn.f32.f16", add_mixed<from_half, 1>},
      {"sub.rn.f32.bf16", add_mixed<from_bf16, -1>},
      {"sub.rn.f32.f16", add_mixed<from_half, -1>},
      {"three.min.f32", ternary<float, float, of_three<fleast<float>>>},
      {"three.max.f32", ternary<float, float, of_three<fmost<float>>>},
      {"add.f32x2", binary_pair<add<float>>},
      {"sub.f32x2", binary_pair<sub<float>>},
      {"mul.f32x2", binary_pair<mul<float>>},
      {"fma.rn.f32x2", ternary_pair<fused<float>>},
      {"div.full.f32", binary<float, float, divided<float>>},
      {"abs.ftz.f32", unary<float, float, flushed_abs>},
      {"fma.rn.ftz.f32", ternary<float, float, fused_flushed>},
      {"ex2.approx.f32", unary<float, float, exp2_plain>},
      {"ex2.approx.ftz.f32", unary<float, float, exp2_flushed>},
      {"rcp.approx.ftz.f64", unary<double, double, rough_inverse>},
      {"mul.wide.s32", binary<int64_t, int32_t, wide_mul<int64_t, int32_t>>},
      {"mul.wide.u32", binary<uint64_t, uint32_t, wide_mul<uint64_t, uint32_t>>},
      {"mul.wide.u16", binary<uint32_t, uint16_t, wide_mul<uint32_t, uint16_t>>},
      {"mad.wide.s32", ternary<int64_t, int32_t, wide_mad<int64_t, int32_t>>},
      {"mad.wide.u32", ternary<uint64_t, uint32_t, wide_mad<uint64_t, uint32_t>>},
      {"mad.lo.s32", ternary<int32_t, int32_t, wide_mad<int32_t, int32_t>>},
      {"mad.lo.s64", ternary<int64_t, int64_t, wide_mad<int64_t, int64_t>>},
      {"popc.b32", unary<int32_t, uint32_t, ones<uint32_t>>},
      {"popc.b64", unary<int32_t, uint64_t, ones<uint64_t>>},
      {"bfe.s32", field<int32_t>},
      {"bfe.u32", field<uint32_t>},
      {"prmt.b32", permute},
      {"cvt.f32.bf16", unary<float, uint16_t, from_bf16>},
      {"cvt.rn.bf16.f32", unary<uint16_t, float, to_bf16>},
      {"cvt.rn.bf16x2.f32", pair_of<to_bf16>},
      {"cvt.f32.f16", unary<float, uint16_t, from_half>},
      {"cvt.rn.f16.f32", unary<uint16_t, float, to_half>},
      {"cvt.rn.f16x2.f32", pair_of<to_half>},
      {"cvt.f64.bf16", unary<double, uint16_t, widened<from_bf16>>},
      {"cvt.f64.f16", unary<double, uint16_t, widened<from_half>>},
      {"cvt.f64.f32", unary<double, float, cast<double, float>>},
      {"cvt.rn.f32.f64", unary<float, double, cast<float, double>>},
      {"cvt.rn.f32.s32", unary<float, int32_t, cast<float, int32_t>>},
      {"cvt.rn.f32.u32", unary<float, uint32_t, cast<float, uint32_t>>},
      {"cvt.rn.f32.s64", unary<float, int64_t, cast<float, int64_t>>},
      {"cvt.rn.f64.s32", unary<double, int32_t, cast<double, int32_t>>},
      {"cvt.rn.f64.s64", unary<double, int64_t, cast<double, int64_t>>},
      {"cvt.rzi.s32.f32", unary<int32_t, float, truncated<int32_t>>},
      {"cvt.s64.s32", unary<int64_t, int32_t, cast<int64_t, int32_t>>},
      {"cvt.u64.u32", unary<uint64_t, uint32_t, cast<uint64_t, uint32_t>>},
      {"cvt.u32.u64", unary<uint32_t, uint64_t, cast<uint32_t, uint64_t>>},
      {"cvt.u16.u32", unary<uint16_t, uint32_t, cast<uint16_t, uint32_t>>},
      {"cvt.u32.u16", unary<uint32_t, uint16_t, cast<uint32_t, uint16_t>>},
      {"cvt.s32.s16", unary<int32_t, int16_t, cast<int32_t, int16_t>>},
      {"cvt.u16.u64", unary<uint16_t, uint64_t, cast<uint16_t, uint64_t>>},
      {"cvt.s32.s8", unary<int32_t, int8_t, cast<int32_t, int8_t>>},
      {"pack.b32", pack<16>},
      {"pack.b64", pack<32>},
      {"unpack.b32", unpack<16>},
      {"unpack.b64", unpack<32>},
      COMPARISONS(uint16_t, "b16"),
      COMPARISONS(uint16_t, "u16"),
      COMPARISONS(int16_t, "s16"),
      COMPARISONS(uint32_t, "b32"),
      COMPARISONS(uint32_t, "u32"),
      COMPARISONS(int32_t, "s32"),
      COMPARISONS(uint64_t, "b64"),
      COMPARISONS(uint64_t, "u64"),
      COMPARISONS(int64_t, "s64"),
      COMPARISONS(float, "f32"),
      COMPARISONS(double, "f64"),
      UNORDERED(float, "f32"),
      UNORDERED(double, "f64"),
      MOVES(uint16_t, "b16"),
      MOVES(uint16_t, "u16"),
      MOVES(uint32_t, "b32"),
      MOVES(uint32_t, "u32"),
      MOVES(uint32_t, "s32"),
      MOVES(uint32_t, "f32"),
      MOVES(uint64_t, "b64"),
      MOVES(uint64_t, "u64"),
      MOVES(uint64_t, "s64"),
      MOVES(uint64_t, "f64"),
      MOVES(bool, "pred"),
      MEMORY("global", load_global, store_global),
      MEMORY("shared", load_shared, store_shared),
      {"ld.shared.s32", load_shared<uint32_t, 1>},
      {"atom.global.gpu.release.add.u32", add_atomic<true>},
      {"atom.global.gpu.relaxed.add.u32", add_atomic<false>},
      {"ld.global.gpu.acquire.b32", load_acquire},
      {"cp.async.ca.shared.global", copy_async},
      {"cp.async.cg.shared.global", copy_async},
      {"cp.async.commit_group", commit_copies},
      {"cp.async.wait_group", wait_copies},
      {"shfl.sync.bfly.b32", shuffle<Shuffle::bfly>},
      {"shfl.sync.up.b32", shuffle<Shuffle::up>},
      {"shfl.sync.idx.b32", shuffle<Shuffle::idx>},
      {"shfl.sync.down.b32", shuffle<Shuffle::down>},
      {"redux.sync.add.s32", reduce<int32_t, add<int32_t>>},
      {"redux.sync.min.s32", reduce<int32_t, least<int32_t>>},
      {"redux.sync.max.s32", reduce<int32_t, most<int32_t>>},
      {"redux.sync.min.u32", reduce<uint32_t, least<uint32_t>>},
      {"redux.sync.max.u32", reduce<uint32_t, most<uint32_t>>},
      {"redux.sync.max.f32", reduce<float, fmost<float>>},
      {"redux.sync.max.abs.f32", reduce<float, largest_size>},
      {"elect.sync", elect},
      {"ldmatrix.sync.aligned.m8n8.x1.shared.b16", load_matrices<1>},
      {"ldmatrix.sync.aligned.m8n8.x2.shared.b16", load_matrices<2>},
      {"ldmatrix.sync.aligned.m8n8.x4.shared.b16", load_matrices<4>},
      {"stmatrix.sync.aligned.m8n8.x1.shared.b16", store_matrices<1>},
      {"stmatrix.sync.aligned.m8n8.x2.shared.b16", store_matrices<2>},
      {"stmatrix.sync.aligned.m8n8.x4.shared.b16", store_matrices<4>},
      {"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", multiply<from_bf16>},
      {"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", multiply<from_half>},
      PRODUCTS(16),
      PRODUCTS(32),
      PRODUCTS(64),
      PRODUCTS(128),
      PRODUCTS(256),
      {"wgmma.commit_group.sync.aligned", commit_products},
      {"wgmma.wait_group.sync.aligned", wait_products},
      {"mbarrier.init.shared::cta.b64", start_barrier},
      {"mbarrier.inval.shared::cta.b64", end_barrier},
      {"mbarrier.try_wait.parity.shared::cta.b64", try_wait},
      {"mbarrier.try_wait.parity.shared.b64", try_wait},
      {"tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32", allocate},
      {"tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned", nothing},
      {"tcgen05.dealloc.cta_group::1.sync.aligned.b32", give_back},
      {"tcgen05.mma.cta_group::1.kind::f16", multiply_tensor<false>},
      {"held.tcgen05.mma.cta_group::1.kind::f16", multiply_tensor<true>},
      {"tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64", commit_tensor},
      {"tcgen05.commit.cta_group::1.mbarrier::arrive::one.b64", commit_tensor},
      {"tcgen05.wait::st.sync.aligned", wait_stores},
      // Triton moves what was loaded to other registers before it waits. So loads happen at once.
      {"tcgen05.wait::ld.sync.aligned", nothing},
      TENSOR(8),
      TENSOR(16),
      TENSOR(32),
      TENSOR(64),
      TENSOR(128),
  };
  return all;
}

}  // namespace ptx
