// SPDX-License-Identifier: Apache-2.0
// What `zspa_kernels._C` has for primitives and methods; conventions as in bindings.cpp. The images of
// a batch are taken one after another.
#include "bindings.h"

#include "cpu/alignment.h"
#include "cpu/centred.h"
#include "cpu/combined.h"
#include "cpu/merging.h"
#include "cpu/parallel.h"
#include "cpu/pivots.h"
#include "cpu/sharing.h"
#include "cpu/thinning.h"
#include "cpu/topk.h"

namespace py = pybind11;
using zspa::at;
using zspa::DType;

namespace {

// The images of a batch one after another, each with all threads.
template <class Run>
void for_each_image(uintptr_t x, int dtype, int64_t S, int64_t N, int64_t D, int64_t batch_stride,
                    int64_t row_stride, const Run& run) {
  const int64_t size = zspa::size_of(DType(dtype));
  for (int64_t s = 0; s < S; ++s)
    run(s, zspa::cpu::Tokens{at<const char>(x) + s * batch_stride * size, DType(dtype), N, D,
                             row_stride * size});
}

// The texts of a batch.
struct Words {
  uintptr_t data;
  int dtype;
  int64_t M, batch_stride, row_stride;
  uintptr_t mask;

  zspa::cpu::Prompt of(int64_t s, int64_t D) const {
    const int64_t size = zspa::size_of(DType(dtype));
    return {at<const char>(data) + s * batch_stride * size,  DType(dtype), M, D, row_stride * size,
            mask ? at<const uint8_t>(mask) + s * M : nullptr};
  }
};

void call_alignment(uintptr_t visual, int dtype, int64_t S, int64_t N, int64_t D,
                    int64_t batch_stride, int64_t row_stride, uintptr_t mask, uintptr_t prompt,
                    int prompt_dtype, int64_t M, int64_t prompt_batch_stride,
                    int64_t prompt_row_stride, uintptr_t prompt_mask, int threads, uintptr_t out) {
  const Words words{prompt, prompt_dtype, M, prompt_batch_stride, prompt_row_stride, prompt_mask};
  for_each_image(visual, dtype, S, N, D, batch_stride, row_stride,
                 [&](int64_t s, const zspa::cpu::Tokens& tokens) {
                   zspa::cpu::alignment(tokens, mask ? at<const uint8_t>(mask) + s * N : nullptr,
                                        words.of(s, D), threads, at<double>(out) + s * N);
                 });
}

void call_word_cosines(uintptr_t visual, int dtype, int64_t S, int64_t N, int64_t D,
                       int64_t batch_stride, int64_t row_stride, uintptr_t mask, uintptr_t prompt,
                       int prompt_dtype, int64_t M, int64_t prompt_batch_stride,
                       int64_t prompt_row_stride, uintptr_t prompt_mask, int threads,
                       uintptr_t cosines, uintptr_t valid, uintptr_t real) {
  const Words words{prompt, prompt_dtype, M, prompt_batch_stride, prompt_row_stride, prompt_mask};
  for_each_image(visual, dtype, S, N, D, batch_stride, row_stride,
                 [&](int64_t s, const zspa::cpu::Tokens& tokens) {
                   zspa::cpu::word_cosines(tokens, mask ? at<const uint8_t>(mask) + s * N : nullptr,
                                           words.of(s, D), threads, at<float>(cosines) + s * M * N,
                                           at<uint8_t>(valid) + s * N, at<uint8_t>(real) + s * M);
                 });
}

void call_centred(uintptr_t visual, int dtype, int64_t S, int64_t N, int64_t D,
                  int64_t batch_stride, int64_t row_stride, uintptr_t mask, int threads,
                  uintptr_t out) {
  for_each_image(visual, dtype, S, N, D, batch_stride, row_stride,
                 [&](int64_t s, const zspa::cpu::Tokens& tokens) {
                   zspa::cpu::centred(tokens, mask ? at<const uint8_t>(mask) + s * N : nullptr,
                                      threads, at<float>(out) + s * N * D);
                 });
}

void call_distinctiveness(uintptr_t visual, int dtype, int64_t S, int64_t N, int64_t D,
                          int64_t batch_stride, int64_t row_stride, uintptr_t mask, int threads,
                          uintptr_t out) {
  for_each_image(visual, dtype, S, N, D, batch_stride, row_stride,
                 [&](int64_t s, const zspa::cpu::Tokens& tokens) {
                   zspa::cpu::distinctiveness(tokens,
                                              mask ? at<const uint8_t>(mask) + s * N : nullptr,
                                              threads, at<float>(out) + s * N);
                 });
}

void call_lengths(uintptr_t x, int dtype, int64_t S, int64_t N, int64_t D, int64_t batch_stride,
                  int64_t row_stride, int threads, uintptr_t out) {
  for_each_image(x, dtype, S, N, D, batch_stride, row_stride,
                 [&](int64_t s, const zspa::cpu::Tokens& tokens) {
                   zspa::cpu::lengths(tokens, threads, at<float>(out) + s * N);
                 });
}

void call_valid_rows(uintptr_t x, int dtype, int64_t S, int64_t N, int64_t D, int64_t batch_stride,
                     int64_t row_stride, uintptr_t mask, int threads, uintptr_t out) {
  for_each_image(x, dtype, S, N, D, batch_stride, row_stride,
                 [&](int64_t s, const zspa::cpu::Tokens& tokens) {
                   zspa::cpu::valid_rows(tokens, mask ? at<const uint8_t>(mask) + s * N : nullptr,
                                         threads, at<uint8_t>(out) + s * N);
                 });
}

void call_assign(uintptr_t features, int dtype, int64_t S, int64_t N, int64_t D,
                 int64_t batch_stride, int64_t row_stride, uintptr_t mask, uintptr_t kept,
                 int64_t K, int threads, uintptr_t owner) {
  for_each_image(features, dtype, S, N, D, batch_stride, row_stride,
                 [&](int64_t s, const zspa::cpu::Tokens& tokens) {
                   zspa::cpu::assign(tokens, mask ? at<const uint8_t>(mask) + s * N : nullptr,
                                     at<const int64_t>(kept) + s * K, K, threads,
                                     at<int64_t>(owner) + s * N);
                 });
}

void call_groups(uintptr_t features, int dtype, int64_t S, int64_t N, int64_t D,
                 int64_t batch_stride, int64_t row_stride, uintptr_t mask, uintptr_t indices,
                 uintptr_t core, int64_t K, int threads, uintptr_t owner, uintptr_t weights) {
  for_each_image(features, dtype, S, N, D, batch_stride, row_stride,
                 [&](int64_t s, const zspa::cpu::Tokens& tokens) {
                   zspa::cpu::groups(tokens, mask ? at<const uint8_t>(mask) + s * N : nullptr,
                                     at<const int64_t>(indices) + s * K,
                                     at<const uint8_t>(core) + s * K, K, threads,
                                     at<int64_t>(owner) + s * N, at<float>(weights) + s * N);
                 });
}

void call_until_novel(uintptr_t features, int dtype, int64_t S, int64_t N, int64_t D,
                      int64_t batch_stride, int64_t row_stride, uintptr_t ranked, int64_t R,
                      int64_t least, double limit, int64_t patience, int threads) {
  for_each_image(features, dtype, S, N, D, batch_stride, row_stride,
                 [&](int64_t s, const zspa::cpu::Tokens& tokens) {
                   int64_t* rank = at<int64_t>(ranked) + s * R;
                   int64_t* end = std::remove(rank, rank + R, int64_t(-1));
                   std::fill(rank + zspa::cpu::until_novel(tokens, rank, end - rank, least, limit,
                                                           patience, threads),
                             rank + R, int64_t(-1));
                 });
}

void call_match(uintptr_t features, int dtype, int64_t S, int64_t N, int64_t D,
                int64_t batch_stride, int64_t row_stride, uintptr_t mask, int64_t k, int threads,
                uintptr_t heads, uintptr_t owner) {
  for_each_image(features, dtype, S, N, D, batch_stride, row_stride,
                 [&](int64_t s, const zspa::cpu::Tokens& tokens) {
                   zspa::cpu::match(tokens, mask ? at<const uint8_t>(mask) + s * N : nullptr, k,
                                    threads, at<int64_t>(heads) + s * k,
                                    at<int64_t>(owner) + s * N);
                 });
}

void call_thin(uintptr_t features, int dtype, int64_t S, int64_t N, int64_t D, int64_t batch_stride,
               int64_t row_stride, uintptr_t mask, uintptr_t scores, int64_t k, int64_t step,
               int threads, uintptr_t out) {
  for_each_image(features, dtype, S, N, D, batch_stride, row_stride,
                 [&](int64_t s, const zspa::cpu::Tokens& tokens) {
                   zspa::cpu::thin(tokens, mask ? at<const uint8_t>(mask) + s * N : nullptr,
                                   at<const double>(scores) + s * N, k, step, threads,
                                   at<int64_t>(out) + s * k);
                 });
}

void call_merge(uintptr_t x, int dtype, int64_t S, int64_t N, int64_t D, int64_t batch_stride,
                int64_t row_stride, uintptr_t owner, uintptr_t weights, int64_t k, int threads,
                uintptr_t out) {
  for_each_image(x, dtype, S, N, D, batch_stride, row_stride,
                 [&](int64_t s, const zspa::cpu::Tokens& rows) {
                   zspa::cpu::merge(rows, at<const int64_t>(owner) + s * N,
                                    weights ? at<const float>(weights) + s * N : nullptr, k,
                                    threads, at<float>(out) + s * k * D);
                 });
}

template <class Score>
void topk_rows(const Score* scores, int64_t S, int64_t N, const uint8_t* mask,
               const uint8_t* forced, int64_t k, bool ascending, int threads, int64_t* indices,
               uint8_t* found) {
  threads = zspa::cpu::threads_for(16 * S * N, zspa::cpu::usable_threads(threads));
  zspa::cpu::parallel_for(threads, S, [&](int64_t s, int) {
    const int64_t count =
        zspa::cpu::top_k(zspa::cpu::Rated<Score>{scores + s * N, N, mask ? mask + s * N : nullptr,
                                                 forced ? forced + s * N : nullptr},
                         k, ascending, indices + s * k);
    if (found)
      for (int64_t t = 0; t < k; ++t) found[s * k + t] = t < count;
  });
}

void call_topk(uintptr_t scores, int dtype, int64_t S, int64_t N, uintptr_t mask, uintptr_t forced,
               int64_t k, bool ascending, int threads, uintptr_t indices, uintptr_t found) {
  const auto run = [&](const auto* values) {
    topk_rows(values, S, N, at<const uint8_t>(mask), at<const uint8_t>(forced), k, ascending,
              threads, at<int64_t>(indices), at<uint8_t>(found));
  };
  if (dtype == zspa::cpu::kDouble) return run(at<const double>(scores));
  if (DType(dtype) == DType::f32) return run(at<const float>(scores));
  if (DType(dtype) == DType::f16) return run(at<const zspa::Half>(scores));
  run(at<const zspa::BFloat16>(scores));
}

void ascending(uintptr_t picks, int64_t S, int64_t K, int64_t N, uintptr_t indices,
               uintptr_t found) {
  for (int64_t s = 0; s < S; ++s)
    zspa::cpu::ascending(at<const int64_t>(picks) + s * K, K, N, at<int64_t>(indices) + s * K,
                         at<uint8_t>(found) + s * K);
}

void combined(uintptr_t core, int64_t S, int64_t R, uintptr_t picks, int64_t P, int64_t k,
              bool ascending, uintptr_t indices, uintptr_t in_core) {
  for (int64_t s = 0; s < S; ++s)
    zspa::cpu::combined(at<const int64_t>(core) + s * R, R, at<const int64_t>(picks) + s * P, P, k,
                        ascending, at<int64_t>(indices) + s * k, at<uint8_t>(in_core) + s * k);
}

void best_of_crops(uintptr_t attention, uintptr_t scores, uintptr_t valid, int64_t S, int64_t N,
                   int64_t crops, double sharpness, int64_t k, bool ascending, uintptr_t indices) {
  for (int64_t s = 0; s < S; ++s)
    zspa::cpu::best_of_crops({at<const float>(attention) + s * N, at<const float>(scores) + s * N,
                              at<const uint8_t>(valid) + s * N, N, crops, sharpness},
                             k, ascending, at<int64_t>(indices) + s * k);
}

void call_by_pivots(uintptr_t visual, int dtype, int64_t S, int64_t N, int64_t D,
                    int64_t batch_stride, int64_t row_stride, uintptr_t mask, uintptr_t keys,
                    int keys_dtype, int64_t C, int64_t keys_batch_stride, int64_t keys_row_stride,
                    uintptr_t prompt, int prompt_dtype, int64_t M, int64_t prompt_batch_stride,
                    int64_t prompt_row_stride, uintptr_t prompt_mask, int64_t pivots,
                    int64_t text_pivots, int64_t k, bool ascending, int threads, uintptr_t norms,
                    uintptr_t indices, uintptr_t in_core) {
  const Words words{prompt, prompt_dtype, M, prompt_batch_stride, prompt_row_stride, prompt_mask};
  const int64_t size = zspa::size_of(DType(keys_dtype));
  for_each_image(
      visual, dtype, S, N, D, batch_stride, row_stride,
      [&](int64_t s, const zspa::cpu::Tokens& tokens) {
        const zspa::cpu::Tokens measured{at<const char>(keys) + s * keys_batch_stride * size,
                                         DType(keys_dtype), N, C, keys_row_stride * size};
        zspa::cpu::by_pivots(tokens, mask ? at<const uint8_t>(mask) + s * N : nullptr,
                             keys ? &measured : nullptr, words.of(s, D), {pivots, text_pivots, k},
                             ascending, threads, at<float>(norms) + s * N,
                             at<int64_t>(indices) + s * k, at<uint8_t>(in_core) + s * k);
      });
}

void top_k_and_spaced(uintptr_t scores, int64_t S, int64_t N, uintptr_t mask, int64_t k,
                      int64_t spaced, bool ascending, uintptr_t indices, uintptr_t top) {
  for (int64_t s = 0; s < S; ++s)
    zspa::cpu::top_k_and_spaced(
        {at<const float>(scores) + s * N, N, mask ? at<const uint8_t>(mask) + s * N : nullptr}, k,
        spaced, ascending, at<int64_t>(indices) + s * k, at<uint8_t>(top) + s * k);
}

}  // namespace

void zspa::bind_primitives(py::module_& m) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.def("alignment", &call_alignment, unlocked);
  m.def("word_cosines", &call_word_cosines, unlocked);
  m.def("centred", &call_centred, unlocked);
  m.def("distinctiveness", &call_distinctiveness, unlocked);
  m.def("lengths", &call_lengths, unlocked);
  m.def("valid_rows", &call_valid_rows, unlocked);
  m.def("assign", &call_assign, unlocked);
  m.def("match", &call_match, unlocked);
  m.def("until_novel", &call_until_novel, unlocked);
  m.def("groups", &call_groups, unlocked);
  m.def("merge", &call_merge, unlocked);
  m.def("thin", &call_thin, unlocked);
  m.def("topk", &call_topk, unlocked);
  m.def("ascending", &ascending, unlocked);
  m.def("combined", &combined, unlocked);
  m.def("best_of_crops", &best_of_crops, unlocked);
  m.def("by_pivots", &call_by_pivots, unlocked);
  m.def("top_k_and_spaced", &top_k_and_spaced, unlocked);
}
