// The routers' keep scores.
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "router_scores.h"
#include "scores_case.h"

using namespace first_cpp;
using namespace first_cpp::testing;

TEST(router_scores_random_cases) {
    for (uint64_t seed = 0; seed < 2000; ++seed) {
        Choices choices(seed);
        try {
            run_scores_case(choices);
        } catch (const std::exception & e) {
            throw std::logic_error("seed " + std::to_string(seed) + ": " + e.what());
        }
    }
}

TEST(router_scores_of_a_known_state) {
    RouterScores scores({3.0F, 0.0F}, {0.5F}, 0.0F);
    const float state[] = {1.0F, -1.0F};  // its rms is 1
    scores.read(0, state, 1, 2);
    CHECK(std::abs(scores.scores()[0] - 1.0F / (1.0F + std::exp(-3.5F))) < 1e-6F);
}

TEST(router_scores_not_finite_keep_the_layer) {
    RouterScores scores({1.0F, 1.0F}, {0.0F}, 1e-5F);
    const float inf = std::numeric_limits<float>::infinity();
    const float states[] = {1.0F, std::nanf(""), inf, 1.0F, 1e38F, 1e38F};
    scores.read(0, states, 3, 2);
    CHECK(scores.not_finite() >= 2);
    CHECK_EQUAL(scores.scores()[0], 1.0F);
    CHECK_EQUAL(scores.scores()[1], 1.0F);
}

TEST(router_scores_refuse_what_does_not_fit) {
    CHECK_THROWS(std::invalid_argument, RouterScores({1, 2, 3}, {1, 2}, 1e-5F));
    CHECK_THROWS(std::invalid_argument, RouterScores({}, {1}, 1e-5F));
    CHECK_THROWS(std::invalid_argument, RouterScores({1}, {}, 1e-5F));
    RouterScores scores({1, 2, 3, 4}, {1, 2}, 1e-5F);
    const float state[4] = {};
    CHECK_THROWS(std::runtime_error, scores.read(2, state, 1, 2));
    CHECK_THROWS(std::runtime_error, scores.read(-1, state, 1, 2));
    CHECK_THROWS(std::runtime_error, scores.read(0, state, 1, 4));
    CHECK_THROWS(std::invalid_argument, scores.load({1, 2, 3}));
    CHECK_THROWS(std::invalid_argument, scores.seek(1));
}
