// One random case for the probes' values.
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

constexpr float kNormEps = 1e-5F;

// Routers on some points, one a column, and columns that several points add to.
std::vector<Probe> draw_probes(Choices & choices, size_t n_points, size_t n_embd, bool any) {
    std::vector<Probe> probes;
    const auto add = [&](size_t point, size_t column, bool sigmoid) {
        probes.push_back(Probe{point, column, draw_floats(choices, n_embd, any), draw_float(choices, any), kNormEps, sigmoid});
    };
    size_t column = 0;
    for (size_t point = 0; point < n_points; ++point) {
        if (choices.one_in(2)) {
            add(point, column++, true);
        }
    }
    const size_t n_costs = 1 + choices.below(3);
    for (const size_t end = column + n_costs; column < end; ++column) {
        for (size_t point = 0; point < n_points; ++point) {
            add(point, column, false);
        }
    }
    return probes;
}

double value_of(const Probe & probe, const float * h) {
    double dot = 0;
    double squares = 0;
    for (size_t i = 0; i < probe.weight.size(); ++i) {
        dot += static_cast<double>(probe.weight[i]) * h[i];
        squares += static_cast<double>(h[i]) * h[i];
    }
    const double linear = dot / std::sqrt(squares / static_cast<double>(probe.weight.size()) + probe.norm_eps) + probe.bias;
    return probe.sigmoid ? 1.0 / (1.0 + std::exp(-linear)) : linear;
}

using States = std::vector<std::vector<float>>;

// Hands over the positions from `begin` on: every point in batches of its own sizes.
void hand_over(RouterScores & scores, size_t n_embd, const States & states, size_t begin, size_t n_positions,
               Choices & choices) {
    for (size_t point = 0; point < states.size(); ++point) {
        for (size_t at = begin; at < n_positions;) {
            const size_t n = 1 + choices.below(static_cast<uint32_t>(n_positions - at));
            scores.read(static_cast<int>(point), states[point].data() + at * n_embd, static_cast<int64_t>(n),
                        static_cast<int64_t>(n_embd));
            at += n;
        }
    }
}

void check_values(const std::vector<Probe> & probes, const States & states, size_t n_columns, const std::vector<float> & found,
                  bool any) {
    std::vector<double> expected(found.size(), 0.0);
    std::vector<bool> is_score(n_columns, false);
    for (const Probe & probe : probes) {
        is_score[probe.column] = probe.sigmoid;
        for (size_t at = probe.column, position = 0; at < found.size(); at += n_columns, ++position) {
            expected[at] += value_of(probe, states[probe.point].data() + position * probe.weight.size());
        }
    }
    for (size_t at = 0; at < found.size(); ++at) {
        if (is_score[at % n_columns]) {
            CHECK(found[at] >= 0.0F && found[at] <= 1.0F);
        }
        CHECK(!std::isnan(found[at]));
        CHECK(std::isfinite(found[at]) || found[at] > 0);  // what is not known is not cheap
        if (!any) {
            CHECK(std::abs(found[at] - expected[at]) < 1e-3);
        }
    }
}

}  // namespace

void run_scores_case(Choices & choices) {
    const bool any = choices.one_in(2);
    const size_t n_points = 1 + choices.below(5);
    const size_t n_embd = 1 + choices.below(40);
    const std::vector<Probe> probes = draw_probes(choices, n_points, n_embd, any);
    const size_t n_positions = 1 + choices.below(9);
    States states;
    for (size_t point = 0; point < n_points; ++point) {
        states.push_back(draw_floats(choices, n_positions * n_embd, any));
    }

    RouterScores split(probes);
    hand_over(split, n_embd, states, 0, n_positions, choices);
    CHECK_EQUAL(split.size(), n_positions);

    // again from a position in the middle on, in other batches: the same values
    const std::vector<float> first = split.scores();
    CHECK_EQUAL(first.size(), n_positions * split.n_columns());
    const size_t again = choices.below(static_cast<uint32_t>(n_positions + 1));
    split.seek(again);
    CHECK_EQUAL(split.size(), again);
    hand_over(split, n_embd, states, again, n_positions, choices);
    CHECK(split.scores() == first);
    CHECK_THROWS(std::invalid_argument, split.seek(n_positions + 1));
    check_values(probes, states, split.n_columns(), first, any);
    CHECK(any || split.not_finite() == 0);
    CHECK(split.not_finite() <= 2 * n_positions * probes.size());  // each was handed over twice at most

    RouterScores loaded(probes);
    loaded.load(first);
    CHECK_EQUAL(loaded.size(), n_positions);
    loaded.seek(again);
    hand_over(loaded, n_embd, states, again, n_positions, choices);
    CHECK(loaded.scores() == first);
}

}  // namespace first_cpp::testing
