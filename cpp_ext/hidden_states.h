// Keeps the residual stream of evaluated tokens, to look at: block influence, tests, training.
#pragma once

#include <utility>
#include <vector>

#include "residual_reader.h"

namespace first_cpp {

class HiddenStates : public ResidualSink {
public:
    explicit HiddenStates(int n_points) : points_(static_cast<size_t>(n_points)) {}

    void take(int point, const float * rows, int64_t n_rows, int64_t n_embd) override {
        auto & kept = points_.at(static_cast<size_t>(point));
        kept.insert(kept.end(), rows, rows + n_rows * n_embd);
    }

    // One [n_tokens * n_embd] block per point; they are as long as each other when every token was an output.
    const std::vector<std::vector<float>> & points() const { return points_; }

private:
    std::vector<std::vector<float>> points_;
};

}  // namespace first_cpp
