// The routers' keep scores, one per prompt position and layer.
#pragma once

#include <cstddef>
#include <vector>

#include "hidden_state_feed.h"

namespace first_cpp {

// score(position, layer) = sigmoid(weight[layer] . h / sqrt(mean(h^2) + norm_eps) + bias[layer]) with h the hidden
// state entering the layer (FiRST, arXiv 2410.12513). Kept per position, so that a reused prompt prefix still counts.
class RouterScores : public HiddenStateReader {
public:
    RouterScores(std::vector<float> weight, std::vector<float> bias, float norm_eps);

    int n_layer() const { return static_cast<int>(bias_.size()); }

    // The next rows of every layer belong to `position` and those after it; what was known from there on is forgotten.
    void seek(size_t position);
    void read(int point, const float * rows, int64_t n_rows, int64_t n_embd) override;

    // Positions from 0 on for which every layer has a score.
    size_t size() const;
    std::vector<float> scores() const;  // of those: [size(), n_layer], row-major
    void load(std::vector<float> scores);

    // Scores that were not finite; they count as 1, "keep the layer".
    size_t not_finite() const { return not_finite_; }

    // Time spent on scoring so far.
    double seconds() const { return seconds_; }

private:
    std::vector<float> weight_;  // [n_layer, n_embd]
    std::vector<float> bias_;    // [n_layer]
    float norm_eps_;
    std::vector<size_t> next_;  // per layer: the position that comes next
    std::vector<float> scores_;
    size_t not_finite_ = 0;
    double seconds_ = 0;
};

}  // namespace first_cpp
