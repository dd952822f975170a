// What probes say of a prompt, position by position: the routers' keep scores, and predicted costs.
#pragma once

#include <cstddef>
#include <vector>

#include "hidden_state_feed.h"

namespace first_cpp {

// A linear function of the hidden state h that enters a layer: weight . h / sqrt(mean(h^2) + norm_eps) + bias, or its sigmoid.
// A router is one with the sigmoid (FiRST, arXiv 2410.12513); several without make up a predicted cost.
struct Probe {
    size_t point;               // which of the hidden states that are handed over
    size_t column;              // where its value is added
    std::vector<float> weight;  // [n_embd]
    float bias;
    float norm_eps;
    bool sigmoid;
};

// One value per position and column: the sum of the column's probes. Kept per position, so that a reused prompt prefix still
// counts.
class RouterScores : public HiddenStateReader {
public:
    // Points and columns are numbered from 0; each has a probe. Throws std::invalid_argument for others.
    explicit RouterScores(std::vector<Probe> probes);

    size_t n_columns() const { return n_columns_; }

    // The next rows of every point belong to `position` and those after it; what was known from there on is forgotten.
    void seek(size_t position);
    void read(int point, const float * rows, int64_t n_rows, int64_t n_embd) override;

    // Positions from 0 on for which every column is whole.
    size_t size() const;
    std::vector<float> scores() const;  // of those: [size(), n_columns], row-major
    void load(std::vector<float> scores);

    // Values that were not finite: a score counts as 1, "keep the layer", a cost as infinite.
    size_t not_finite() const { return not_finite_; }

    // Time spent on scoring so far.
    double seconds() const { return seconds_; }

private:
    void add(const Probe & probe, const float * row, float mean_square, float & value);

    std::vector<std::vector<Probe>> points_;
    size_t n_embd_ = 0;
    size_t n_columns_ = 0;
    std::vector<size_t> next_;  // per point: the position that comes next
    std::vector<float> scores_;
    size_t not_finite_ = 0;
    double seconds_ = 0;
};

}  // namespace first_cpp
