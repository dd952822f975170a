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
    RouterScores scores({Probe{0, 0, {3.0F, 0.0F}, 0.5F, 0.0F, true}});
    const float state[] = {1.0F, -1.0F};  // its rms is 1
    scores.read(0, state, 1, 2);
    CHECK(std::abs(scores.scores()[0] - 1.0F / (1.0F + std::exp(-3.5F))) < 1e-6F);
}

TEST(router_scores_a_cost_is_the_sum_over_points) {
    RouterScores scores({Probe{0, 0, {3.0F, 0.0F}, 0.5F, 0.0F, true}, Probe{0, 1, {2.0F, 0.0F}, -7.0F, 0.0F, false},
                         Probe{1, 1, {0.0F, 4.0F}, 0.0F, 0.0F, false}});
    const float state[] = {1.0F, -1.0F};
    scores.read(0, state, 1, 2);
    CHECK_EQUAL(scores.size(), size_t{0});  // the second point is still to come
    scores.read(1, state, 1, 2);
    CHECK_EQUAL(scores.n_columns(), size_t{2});
    CHECK(std::abs(scores.scores()[1] - (2.0F - 7.0F - 4.0F)) < 1e-6F);
}

TEST(router_scores_not_finite_keep_the_layer) {
    RouterScores scores({Probe{0, 0, {1.0F, 1.0F}, 0.0F, 1e-5F, true}, Probe{0, 1, {-1.0F, -1.0F}, 0.0F, 1e-5F, false}});
    const float inf = std::numeric_limits<float>::infinity();
    const float states[] = {1.0F, std::nanf(""), inf, 1.0F, 1e38F, 1e38F};
    scores.read(0, states, 3, 2);
    CHECK(scores.not_finite() >= 4);
    for (const size_t position : {size_t{0}, size_t{1}}) {
        CHECK_EQUAL(scores.scores()[2 * position], 1.0F);
        CHECK_EQUAL(scores.scores()[2 * position + 1], inf);
    }
}

TEST(router_scores_refuse_what_does_not_fit) {
    CHECK_THROWS(std::invalid_argument, RouterScores(std::vector<Probe>{}));
    CHECK_THROWS(std::invalid_argument, RouterScores({Probe{0, 0, {}, 0, 0, true}}));
    CHECK_THROWS(std::invalid_argument, RouterScores({Probe{1, 0, {1}, 0, 0, true}}));
    CHECK_THROWS(std::invalid_argument, RouterScores({Probe{0, 1, {1}, 0, 0, true}}));
    CHECK_THROWS(std::invalid_argument, RouterScores({Probe{0, 1, {1}, 0, 0, true}, Probe{1, 1, {1}, 0, 0, true}}));
    CHECK_THROWS(std::invalid_argument, RouterScores({Probe{0, size_t(-1), {1}, 0, 0, true}}));
    CHECK_THROWS(std::invalid_argument, RouterScores({Probe{0, 0, {1}, 0, 0, true}, Probe{0, 1, {1, 2}, 0, 0, true}}));
    RouterScores scores({Probe{0, 0, {1, 2}, 0, 1e-5F, true}, Probe{1, 1, {3, 4}, 0, 1e-5F, true}});
    const float state[4] = {};
    CHECK_THROWS(std::runtime_error, scores.read(2, state, 1, 2));
    CHECK_THROWS(std::runtime_error, scores.read(-1, state, 1, 2));
    CHECK_THROWS(std::runtime_error, scores.read(0, state, 1, 4));
    CHECK_THROWS(std::invalid_argument, scores.load({1, 2, 3}));
    CHECK_THROWS(std::invalid_argument, scores.seek(1));
}
