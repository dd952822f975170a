// One step of sampling: llama.cpp's samplers with a token mask among them.
#include "sampler.h"

#include <algorithm>
#include <cmath>

namespace first_cpp {

namespace {

constexpr auto ALLOWED = static_cast<Sampler::Failure>(0);
constexpr float INF = INFINITY;

}  // namespace

// Takes away what the mask forbids, and looks at what is left before anything sorts it. Two loops, and sums instead of
// booleans in the second: the compiler vectorises it so.
Sampler::Failure Sampler::narrow(const uint32_t * mask) {
    llama_token_data * candidates = candidates_.data();
    const size_t n = candidates_.size();
    for (size_t i = 0; mask != nullptr && i < n; ++i) {
        if (((mask[i / 32] >> (i % 32)) & 1U) == 0) {
            candidates[i].logit = -INF;
        }
    }
    unsigned not_finite = 0;
    unsigned any = 0;
    for (size_t i = 0; i < n; ++i) {
        const float logit = candidates[i].logit;
        not_finite |= static_cast<unsigned>(!(logit < INF));  // true for NaN
        any |= static_cast<unsigned>(logit > -INF);
    }
    if (not_finite != 0) {
        return NOT_FINITE;
    }
    return any != 0 ? ALLOWED : NO_TOKEN;
}

llama_token Sampler::sample(llama_sampler * chain, llama_context * ctx, int32_t row, int32_t n_before, const uint32_t * mask) {
    const float * logits = call_.get_logits_ith(ctx, row);
    if (logits == nullptr) {
        return NO_LOGITS;
    }
    for (size_t i = 0; i < candidates_.size(); ++i) {
        candidates_[i] = {static_cast<llama_token>(i), logits[i], 0.0F};
    }
    llama_token_data_array left{candidates_.data(), candidates_.size(), /*selected=*/-1, /*sorted=*/false};
    const int32_t n = call_.chain_n(chain);
    const int32_t before = std::min(n_before, n);
    for (int32_t i = 0; i < before; ++i) {
        call_.apply(call_.chain_get(chain, i), &left);
    }
    if (const Failure failure = narrow(mask); failure != ALLOWED) {
        return failure;
    }
    for (int32_t i = before; i < n; ++i) {
        call_.apply(call_.chain_get(chain, i), &left);
    }
    if (left.selected < 0 || static_cast<size_t>(left.selected) >= left.size) {
        return NOT_SELECTED;
    }
    const llama_token_data & selected = left.data[left.selected];
    if (!(selected.logit > -INF)) {
        return NO_TOKEN;
    }
    call_.accept(chain, selected.id);
    return selected.id;
}

}  // namespace first_cpp
