// One random case for the router scores.
#include "scores_case.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"
#include "router_scores.h"

namespace first_cpp::testing {

namespace {

// Ordinary values mostly; at times any bits a float can have.
float draw_float(Choices & choices, bool any) {
    if (!any || !choices.one_in(4)) {
        return static_cast<float>(choices.below(1U << 16)) / 8192.0F - 4.0F;
    }
    const uint32_t bits = choices.below(0xFFFFFFFFU);
    float value = 0;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

std::vector<float> draw_floats(Choices & choices, size_t n, bool any) {
    std::vector<float> values(n);
    for (float & value : values) {
        value = draw_float(choices, any);
    }
    return values;
}

struct Routers {
    size_t n_layer;
    size_t n_embd;
    std::vector<float> weight, bias;
    float norm_eps = 1e-5F;
};

double expected_score(const Routers & r, size_t layer, const float * h) {
    double dot = 0;
    double squares = 0;
    for (size_t i = 0; i < r.n_embd; ++i) {
        dot += static_cast<double>(r.weight[layer * r.n_embd + i]) * h[i];
        squares += static_cast<double>(h[i]) * h[i];
    }
    const double norm = std::sqrt(squares / static_cast<double>(r.n_embd) + r.norm_eps);
    return 1.0 / (1.0 + std::exp(-(dot / norm + r.bias[layer])));
}

// Hands over the positions from `begin` on: every layer in batches of its own sizes.
void hand_over(RouterScores & scores, const Routers & r, const std::vector<std::vector<float>> & states, size_t begin,
               size_t n_positions, Choices & choices) {
    for (size_t layer = 0; layer < r.n_layer; ++layer) {
        for (size_t at = begin; at < n_positions;) {
            const size_t n = 1 + choices.below(static_cast<uint32_t>(n_positions - at));
            scores.read(static_cast<int>(layer), states[layer].data() + at * r.n_embd, static_cast<int64_t>(n),
                        static_cast<int64_t>(r.n_embd));
            at += n;
        }
    }
}

}  // namespace

void run_scores_case(Choices & choices) {
    const bool any = choices.one_in(2);
    Routers r{1 + choices.below(5), 1 + choices.below(40), {}, {}};
    r.weight = draw_floats(choices, r.n_layer * r.n_embd, any);
    r.bias = draw_floats(choices, r.n_layer, any);
    const size_t n_positions = 1 + choices.below(9);
    std::vector<std::vector<float>> states;
    for (size_t layer = 0; layer < r.n_layer; ++layer) {
        states.push_back(draw_floats(choices, n_positions * r.n_embd, any));
    }

    RouterScores split(r.weight, r.bias, r.norm_eps);
    hand_over(split, r, states, 0, n_positions, choices);
    CHECK_EQUAL(split.size(), n_positions);

    // again from a position in the middle on, in other batches: the same scores
    const std::vector<float> first = split.scores();
    const size_t again = choices.below(static_cast<uint32_t>(n_positions + 1));
    split.seek(again);
    CHECK_EQUAL(split.size(), again);
    hand_over(split, r, states, again, n_positions, choices);
    CHECK(split.scores() == first);
    CHECK_THROWS(std::invalid_argument, split.seek(n_positions + 1));

    size_t not_finite = 0;
    for (size_t position = 0; position < n_positions; ++position) {
        for (size_t layer = 0; layer < r.n_layer; ++layer) {
            const float score = first[position * r.n_layer + layer];
            CHECK(score >= 0.0F && score <= 1.0F);
            not_finite += score == 1.0F ? 1 : 0;
            if (!any) {
                const double expected = expected_score(r, layer, states[layer].data() + position * r.n_embd);
                CHECK(std::abs(score - expected) < 1e-4);
            }
        }
    }
    CHECK(any || split.not_finite() == 0);
    CHECK(split.not_finite() <= 2 * not_finite);  // each was handed over twice at most, and counts as 1

    RouterScores loaded(r.weight, r.bias, r.norm_eps);
    loaded.load(first);
    CHECK_EQUAL(loaded.size(), n_positions);
    loaded.seek(again);
    hand_over(loaded, r, states, again, n_positions, choices);
    CHECK(loaded.scores() == first);
}

}  // namespace first_cpp::testing
