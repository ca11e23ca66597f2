// SPDX-License-Identifier: Apache-2.0
// The module `zspa_kernels._C`: addresses and sizes in, nothing of torch inside. Arguments were
// checked in Python (zspa_kernels/_contract/); strides are in elements; address 0 means absent.
#include <omp.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings.h"
#include "cpu/problem.h"
#include "cpu/segments.h"
#include "cpu/sensitivity.h"

#ifndef ZSPA_VERSION
#error "the build must define ZSPA_VERSION"
#endif

namespace py = pybind11;
using zspa::at;
using zspa::DType;
using zspa::cpu::Pooling;
using zspa::cpu::Problem;

namespace {

void set_visual(Problem& p, uintptr_t visual, int dtype, int64_t S, int64_t N, int64_t D,
                int64_t batch_stride, int64_t row_stride, uintptr_t table, uintptr_t mask) {
  p.visual = at<const char>(visual);
  p.dtype = DType(dtype);
  p.S = S;
  p.N = N;
  p.D = D;
  p.batch_bytes = batch_stride * zspa::size_of(p.dtype);
  p.row_bytes = row_stride * zspa::size_of(p.dtype);
  p.table = at<const int64_t>(table);
  p.visual_mask = at<const uint8_t>(mask);
}

void set_prompt(Problem& p, uintptr_t prompt, int dtype, int64_t M, int64_t batch_stride,
                int64_t row_stride, uintptr_t spans, uintptr_t mask, int pooling) {
  p.prompt = at<const char>(prompt);
  p.prompt_dtype = DType(dtype);
  p.M = M;
  p.prompt_batch_bytes = batch_stride * zspa::size_of(p.prompt_dtype);
  p.prompt_row_bytes = row_stride * zspa::size_of(p.prompt_dtype);
  p.spans = at<const int64_t>(spans);
  p.prompt_mask = at<const uint8_t>(mask);
  p.pooling = Pooling(pooling);
}

void report(const Problem& p, uintptr_t stats) {
  if (!stats) return;
  int64_t* out = at<int64_t>(stats);
  out[0] = p.stats.passes;
  out[1] = p.stats.dots;
  out[2] = p.stats.seed_dots;
}

void call_select(uintptr_t visual, int dtype, int64_t S, int64_t N, int64_t D, int64_t batch_stride,
                 int64_t row_stride, uintptr_t table, uintptr_t visual_mask, uintptr_t prompt,
                 int prompt_dtype, int64_t M, int64_t prompt_batch_stride,
                 int64_t prompt_row_stride, uintptr_t spans, uintptr_t prompt_mask, int pooling,
                 int64_t k_core, int64_t k_diverse, int64_t total_slots, bool sorted, int threads,
                 uintptr_t indices, uintptr_t stats) {
  Problem p{};
  set_visual(p, visual, dtype, S, N, D, batch_stride, row_stride, table, visual_mask);
  set_prompt(p, prompt, prompt_dtype, M, prompt_batch_stride, prompt_row_stride, spans, prompt_mask,
             pooling);
  p.k_core = k_core;
  p.k_diverse = k_diverse;
  p.total_slots = total_slots;
  p.sorted = sorted;
  p.threads = threads;
  p.indices = at<int64_t>(indices);
  zspa::cpu::select(p);
  report(p, stats);
}

void call_relevance_topk(uintptr_t visual, int dtype, int64_t B, int64_t N, int64_t D,
                         int64_t batch_stride, int64_t row_stride, uintptr_t visual_mask,
                         uintptr_t prompt, int prompt_dtype, int64_t M, int64_t prompt_batch_stride,
                         int64_t prompt_row_stride, uintptr_t prompt_mask, int pooling, int64_t k,
                         int threads, uintptr_t indices, uintptr_t scores) {
  Problem p{};
  set_visual(p, visual, dtype, B, N, D, batch_stride, row_stride, 0, visual_mask);
  set_prompt(p, prompt, prompt_dtype, M, prompt_batch_stride, prompt_row_stride, 0, prompt_mask,
             pooling);
  p.k_core = k;
  p.threads = threads;
  p.indices = at<int64_t>(indices);
  p.scores = at<float>(scores);
  zspa::cpu::relevance_topk(p);
}

void call_diversity(uintptr_t visual, int dtype, int64_t S, int64_t N, int64_t D,
                    int64_t batch_stride, int64_t row_stride, uintptr_t table,
                    uintptr_t visual_mask, int64_t k, uintptr_t seeds, int64_t num_seeds,
                    uintptr_t weights, int64_t total_slots, int threads, uintptr_t indices,
                    uintptr_t stats) {
  Problem p{};
  set_visual(p, visual, dtype, S, N, D, batch_stride, row_stride, table, visual_mask);
  p.seeds = at<const int64_t>(seeds);
  p.num_seeds = num_seeds;
  p.weights = at<const float>(weights);
  p.k_diverse = k;
  p.total_slots = total_slots;
  p.threads = threads;
  p.indices = at<int64_t>(indices);
  zspa::cpu::diversity(p);
  report(p, stats);
}

void call_dpp(uintptr_t visual, int dtype, int64_t S, int64_t N, int64_t D, int64_t batch_stride,
              int64_t row_stride, uintptr_t table, uintptr_t visual_mask, int64_t k,
              uintptr_t weights, int64_t total_slots, int threads, uintptr_t indices,
              uintptr_t stats) {
  Problem p{};
  set_visual(p, visual, dtype, S, N, D, batch_stride, row_stride, table, visual_mask);
  p.weights = at<const float>(weights);
  p.k_diverse = k;
  p.total_slots = total_slots;
  p.threads = threads;
  p.indices = at<int64_t>(indices);
  zspa::cpu::dpp(p);
  report(p, stats);
}

void call_min_sum(uintptr_t visual, int dtype, int64_t S, int64_t N, int64_t D,
                  int64_t batch_stride, int64_t row_stride, uintptr_t table, uintptr_t visual_mask,
                  int64_t k, uintptr_t seeds, int64_t num_seeds, int64_t total_slots, int threads,
                  uintptr_t indices, uintptr_t stats) {
  Problem p{};
  set_visual(p, visual, dtype, S, N, D, batch_stride, row_stride, table, visual_mask);
  p.seeds = at<const int64_t>(seeds);
  p.num_seeds = num_seeds;
  p.k_diverse = k;
  p.total_slots = total_slots;
  p.threads = threads;
  p.indices = at<int64_t>(indices);
  zspa::cpu::min_sum(p);
  report(p, stats);
}

void ragged_table(uintptr_t offsets, bool wide_offsets, uintptr_t k_core, bool wide_core,
                  uintptr_t k_diverse, bool wide_diverse, int64_t S, int64_t rows, int64_t longest,
                  int64_t slots, uintptr_t table) {
  zspa::cpu::make_table({at<void>(offsets), wide_offsets}, {at<void>(k_core), wide_core},
                        {at<void>(k_diverse), wide_diverse}, S, {rows, longest, slots},
                        at<int64_t>(table));
}

void prompt_spans(uintptr_t spans, bool wide, int64_t S, int64_t rows, uintptr_t out) {
  zspa::cpu::clamp_spans({at<void>(spans), wide}, S, rows, at<int64_t>(out));
}

void call_facility_location(uintptr_t visual, int dtype, int64_t S, int64_t N, int64_t D,
                            int64_t batch_stride, int64_t row_stride, uintptr_t table,
                            uintptr_t visual_mask, int64_t k, uintptr_t benefits, int64_t M,
                            int64_t benefit_batch_stride, int64_t benefit_row_stride,
                            uintptr_t weights, float temperature, float scale, int64_t total_slots,
                            int threads, uintptr_t indices, uintptr_t stats) {
  Problem p{};
  set_visual(p, visual, dtype, S, N, D, batch_stride, row_stride, table, visual_mask);
  p.benefits = at<const float>(benefits);
  p.benefit_rows = M;
  p.benefit_batch_stride = benefit_batch_stride;
  p.benefit_row_stride = benefit_row_stride;
  p.weights = at<const float>(weights);
  p.temperature = temperature;
  p.scale = scale;
  p.k_diverse = k;
  p.total_slots = total_slots;
  p.threads = threads;
  p.indices = at<int64_t>(indices);
  zspa::cpu::facility_location(p);
  report(p, stats);
}

// What both kinds of suppression are given beside their options.
void set_suppression(Problem& p, uintptr_t scores, int64_t k, int threads, uintptr_t indices) {
  p.ratings = at<const double>(scores);
  p.k_diverse = k;
  p.total_slots = p.S * k;
  p.threads = threads;
  p.indices = at<int64_t>(indices);
}

void call_suppress(uintptr_t visual, int dtype, int64_t S, int64_t N, int64_t D,
                   int64_t batch_stride, int64_t row_stride, uintptr_t visual_mask,
                   uintptr_t scores, int64_t k, double threshold, bool fill, int threads,
                   uintptr_t indices, uintptr_t stats) {
  Problem p{};
  set_visual(p, visual, dtype, S, N, D, batch_stride, row_stride, 0, visual_mask);
  set_suppression(p, scores, k, threads, indices);
  p.hard.threshold = threshold;
  p.hard.fill = fill;
  zspa::cpu::suppress(p);
  report(p, stats);
}

void call_soft_suppress(uintptr_t visual, int dtype, int64_t S, int64_t N, int64_t D,
                        int64_t batch_stride, int64_t row_stride, uintptr_t visual_mask,
                        uintptr_t scores, int64_t k, double sharpness, bool subtract,
                        uintptr_t positions, double spread, double reach, int threads,
                        uintptr_t indices, uintptr_t stats) {
  Problem p{};
  set_visual(p, visual, dtype, S, N, D, batch_stride, row_stride, 0, visual_mask);
  set_suppression(p, scores, k, threads, indices);
  p.positions = at<const double>(positions);
  p.soft.sharpness = sharpness;
  p.soft.subtract = subtract;
  p.soft.spread = spread;
  p.soft.reach = reach;
  zspa::cpu::soft_suppress(p);
  report(p, stats);
}

zspa::cpu::Rows rows(uintptr_t data, int dtype, int64_t count, int64_t width, int64_t stride) {
  return {at<char>(data), DType(dtype), count, width, stride * zspa::size_of(DType(dtype))};
}

void sensitivity_slopes(uintptr_t x, int dtype, int64_t N, int64_t H, int64_t stride,
                        uintptr_t bias, int activation, uintptr_t diagonal, int threads,
                        uintptr_t out, int out_dtype, int64_t out_stride, uintptr_t form) {
  zspa::cpu::slopes(rows(x, dtype, N, H, stride), at<const float>(bias),
                    zspa::cpu::Activation(activation), at<const float>(diagonal), threads,
                    rows(out, out_dtype, N, H, out_stride), at<float>(form));
}

void sensitivity_quotients(uintptr_t x, int dtype, int64_t N, int64_t H, int64_t stride,
                           uintptr_t bias, int activation, uintptr_t shifts, int64_t m,
                           float radius, int threads, uintptr_t out, int out_dtype) {
  zspa::cpu::quotients(rows(x, dtype, N, H, stride), at<const float>(bias),
                       zspa::cpu::Activation(activation), at<const float>(shifts), m, radius,
                       threads, rows(out, out_dtype, N * m, H, H));
}

void sensitivity_squares(uintptr_t x, int dtype, int64_t N, int64_t width, int64_t stride,
                         int threads, uintptr_t sums) {
  zspa::cpu::add_squares(rows(x, dtype, N, width, stride), threads, at<float>(sums));
}

int64_t sensitivity_zeros(uintptr_t x, int dtype, int64_t N, int64_t width, int64_t stride) {
  return zspa::cpu::leading_zeros(rows(x, dtype, N, width, stride));
}

py::dict build_info() {
  py::dict info;
  info["version"] = ZSPA_VERSION;
  info["compiler"] = ZSPA_COMPILER;
  info["openmp"] = _OPENMP;
  info["isas"] = zspa::cpu::isas();
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of zspa_kernels; use the functions of the package instead.";
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.def("select", &call_select, unlocked);
  m.def("relevance_topk", &call_relevance_topk, unlocked);
  m.def("diversity", &call_diversity, unlocked);
  m.def("dpp", &call_dpp, unlocked);
  m.def("min_sum", &call_min_sum, unlocked);
  m.def("suppress", &call_suppress, unlocked);
  m.def("soft_suppress", &call_soft_suppress, unlocked);
  zspa::bind_primitives(m);
  m.def("ragged_table", &ragged_table);
  m.def("prompt_spans", &prompt_spans);
  m.def("facility_location", &call_facility_location, unlocked);
  m.def("sensitivity_slopes", &sensitivity_slopes, unlocked);
  m.def("sensitivity_quotients", &sensitivity_quotients, unlocked);
  m.def("sensitivity_squares", &sensitivity_squares, unlocked);
  m.def("sensitivity_zeros", &sensitivity_zeros, unlocked);
  m.def("build_info", &build_info, "How this module was built.");
  m.def("isas", &zspa::cpu::isas, "Instruction sets this CPU can run, best first.");
  m.def("isa", [] { return std::string(zspa::cpu::kernels().name); }, "The one in use.");
  m.def("use_isa", &zspa::cpu::use_isa, "Use one of isas(), or \"auto\"; for tests.");
}
