// The routers' keep scores, one per prompt position and layer.
#include "router_scores.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>
#include <utility>

namespace first_cpp {

namespace {

struct Sums {
    float dot;      // w . h
    float squares;  // h . h
};

// Sixteen running sums, so that compilers vectorise without being allowed to reorder additions.
Sums sums(const float * w, const float * h, size_t n) {
    constexpr size_t lanes = 16;
    float dot[lanes] = {};
    float squares[lanes] = {};
    size_t i = 0;
    for (; i + lanes <= n; i += lanes) {
        for (size_t j = 0; j < lanes; ++j) {
            dot[j] += w[i + j] * h[i + j];
            squares[j] += h[i + j] * h[i + j];
        }
    }
    for (; i < n; ++i) {
        dot[0] += w[i] * h[i];
        squares[0] += h[i] * h[i];
    }
    Sums total{0, 0};
    for (size_t j = 0; j < lanes; ++j) {
        total.dot += dot[j];
        total.squares += squares[j];
    }
    return total;
}

}  // namespace

RouterScores::RouterScores(std::vector<float> weight, std::vector<float> bias, float norm_eps)
    : weight_(std::move(weight)), bias_(std::move(bias)), norm_eps_(norm_eps), next_(bias_.size(), 0) {
    if (bias_.empty() || weight_.empty() || weight_.size() % bias_.size() != 0) {
        throw std::invalid_argument("router weight and bias sizes do not fit each other");
    }
}

void RouterScores::seek(size_t position) {
    if (position > size()) {
        throw std::invalid_argument("router scores before this position are missing");
    }
    std::fill(next_.begin(), next_.end(), position);
    scores_.resize(position * bias_.size());
}

void RouterScores::read(int point, const float * rows, int64_t n_rows, int64_t n_embd) {
    const size_t layers = bias_.size();
    const auto layer = static_cast<size_t>(point);
    const auto width = static_cast<size_t>(n_embd);
    if (layer >= layers || width * layers != weight_.size()) {
        throw std::runtime_error("the hidden states do not have the routers' shape");
    }
    const auto start = std::chrono::steady_clock::now();
    const size_t first = next_[layer];
    const size_t end = first + static_cast<size_t>(n_rows);
    if (scores_.size() < end * layers) {
        scores_.resize(end * layers);
    }
    const float * w = weight_.data() + layer * width;
    for (size_t position = first; position < end; ++position, rows += width) {
        const Sums s = sums(w, rows, width);
        const float norm = std::sqrt(s.squares / static_cast<float>(width) + norm_eps_);
        float score = 1.0F / (1.0F + std::exp(-(s.dot / norm + bias_[layer])));
        if (!std::isfinite(score)) {
            score = 1.0F;
            ++not_finite_;
        }
        scores_[position * layers + layer] = score;
    }
    next_[layer] = end;
    seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

size_t RouterScores::size() const { return *std::min_element(next_.begin(), next_.end()); }

std::vector<float> RouterScores::scores() const {
    return std::vector<float>(scores_.begin(), scores_.begin() + static_cast<std::ptrdiff_t>(size() * bias_.size()));
}

void RouterScores::load(std::vector<float> scores) {
    if (scores.size() % bias_.size() != 0) {
        throw std::invalid_argument("router scores must be [positions, n_layer]");
    }
    scores_ = std::move(scores);
    std::fill(next_.begin(), next_.end(), scores_.size() / bias_.size());
}

}  // namespace first_cpp
