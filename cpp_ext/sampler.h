// One step of sampling: llama.cpp's samplers with a token mask among them.
#pragma once

#include <llama.h>

#include <cstdint>
#include <vector>

namespace first_cpp {

// llama.cpp's functions that a step needs, by address: the extension does not link libllama.
struct SamplingFunctions {
    decltype(&llama_get_logits_ith) get_logits_ith;
    decltype(&llama_sampler_chain_n) chain_n;
    decltype(&llama_sampler_chain_get) chain_get;
    decltype(&llama_sampler_apply) apply;
    decltype(&llama_sampler_accept) accept;
};

// Keeps the list of candidates from step to step; llama_sampler_sample allocates it anew for every token.
class Sampler {
public:
    enum Failure : llama_token {
        NO_TOKEN = -1,    // every candidate has logit -inf
        NOT_FINITE = -2,  // a logit is NaN or +inf, and samplers would sort it
        NO_LOGITS = -3,
        NOT_SELECTED = -4,  // the chain ends without a sampler that selects
    };

    Sampler(const SamplingFunctions & functions, size_t n_vocab) : call_(functions), candidates_(n_vocab) {}

    size_t n_vocab() const { return candidates_.size(); }

    // Select and accept a token by row `row` of the logits: the first `n_before` samplers of the chain, then the mask, then the
    // rest. mask: one bit per token, lowest first, set where the token is allowed; null allows all.
    // Returns the token, or a Failure: nothing was accepted then, and the chain can go on with other logits.
    llama_token sample(llama_sampler * chain, llama_context * ctx, int32_t row, int32_t n_before, const uint32_t * mask);

private:
    Failure narrow(const uint32_t * mask);

    SamplingFunctions call_;
    std::vector<llama_token_data> candidates_;
};

}  // namespace first_cpp
