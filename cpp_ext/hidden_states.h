// Keeps the residual stream of evaluated tokens: for block influence, tests, training.
#pragma once

#include <vector>

#include "hidden_state_feed.h"

namespace first_cpp {

class HiddenStates : public HiddenStateReader {
public:
    explicit HiddenStates(int n_points) : points_(static_cast<size_t>(n_points)) {}

    void read(int point, const float * rows, int64_t n_rows, int64_t n_embd) override {
        auto & kept = points_.at(static_cast<size_t>(point));
        kept.insert(kept.end(), rows, rows + n_rows * n_embd);
    }

    // One [n_tokens * n_embd] block per point; they are as long as each other when every token was an output.
    const std::vector<std::vector<float>> & points() const { return points_; }

private:
    std::vector<std::vector<float>> points_;
};

}  // namespace first_cpp
