// A step of sampling: order, mask, and what is refused before a sampler sorts it. llama.cpp's functions are stood in for.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "sampler.h"

using namespace first_cpp;

namespace {

constexpr float INF = std::numeric_limits<float>::infinity();

// What the functions below see; one test runs at a time.
struct Fake {
    std::vector<float> logits{1, 4, 3, 2};
    std::vector<size_t> applied;  // candidates with a finite logit, seen by each sampler
    std::vector<llama_token> accepted;
    bool select = true;
};

Fake fake;

float * get_logits(llama_context * /*ctx*/, int32_t row) { return row == -1 ? fake.logits.data() : nullptr; }
int chain_n(const llama_sampler * /*chain*/) { return 2; }
llama_sampler * chain_get(llama_sampler * chain, int32_t i) { return chain + i; }

// The first adds 10 to the last token, the second selects the greatest.
void apply(llama_sampler * sampler, llama_token_data_array * left) {
    size_t finite = 0;
    for (size_t i = 0; i < left->size; ++i) {
        finite += std::isfinite(left->data[i].logit) ? 1 : 0;
    }
    fake.applied.push_back(finite);
    if (sampler->iface == nullptr) {
        left->data[left->size - 1].logit += 10;
    } else if (fake.select) {
        left->selected = 0;
        for (size_t i = 0; i < left->size; ++i) {
            if (left->data[i].logit > left->data[left->selected].logit) {
                left->selected = static_cast<int64_t>(i);
            }
        }
    }
}

void accept(llama_sampler * /*chain*/, llama_token token) { fake.accepted.push_back(token); }

llama_token sample(const uint32_t * mask, int32_t row = -1) {
    static llama_sampler_i selects{};
    llama_sampler chain[2] = {{nullptr, nullptr}, {&selects, nullptr}};
    Sampler sampler({&get_logits, &chain_n, &chain_get, &apply, &accept}, fake.logits.size());
    return sampler.sample(chain, nullptr, row, 1, mask);
}

}  // namespace

TEST(sampler_runs_the_chain_and_accepts) {
    fake = Fake{};
    CHECK_EQUAL(sample(nullptr), 3);
    CHECK(fake.accepted == std::vector<llama_token>{3});
}

TEST(sampler_masks_between) {
    fake = Fake{};
    const uint32_t mask = 0b0110;
    CHECK_EQUAL(sample(&mask), 1);
    CHECK((fake.applied == std::vector<size_t>{4, 2}));  // what runs before sees all
}

TEST(sampler_refuses_an_empty_mask_and_accepts_nothing) {
    fake = Fake{};
    const uint32_t mask = 0;
    CHECK_EQUAL(sample(&mask), static_cast<llama_token>(Sampler::NO_TOKEN));
    CHECK_EQUAL(fake.applied.size(), size_t{1});
    CHECK(fake.accepted.empty());
}

TEST(sampler_refuses_what_is_not_finite) {
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), INF}) {
        fake = Fake{};
        fake.logits[2] = bad;
        CHECK_EQUAL(sample(nullptr), static_cast<llama_token>(Sampler::NOT_FINITE));
        CHECK(fake.accepted.empty());
    }
    fake = Fake{};
    fake.logits[2] = -INF;  // as logit_bias may have it
    CHECK_EQUAL(sample(nullptr), 3);
}

TEST(sampler_without_logits_or_selection) {
    fake = Fake{};
    CHECK_EQUAL(sample(nullptr, 5), static_cast<llama_token>(Sampler::NO_LOGITS));
    fake.select = false;
    CHECK_EQUAL(sample(nullptr), static_cast<llama_token>(Sampler::NOT_SELECTED));
    CHECK(fake.accepted.empty());
}
