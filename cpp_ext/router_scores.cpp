// What probes say of a prompt, position by position: the routers' keep scores, and predicted costs.
#include "router_scores.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>

namespace first_cpp {

namespace {

// Sixteen running sums, so that compilers vectorise without being allowed to reorder additions.
float dot(const float * a, const float * b, size_t n) {
    constexpr size_t lanes = 16;
    float sums[lanes] = {};
    size_t i = 0;
    for (; i + lanes <= n; i += lanes) {
        for (size_t j = 0; j < lanes; ++j) {
            sums[j] += a[i + j] * b[i + j];
        }
    }
    for (; i < n; ++i) {
        sums[0] += a[i] * b[i];
    }
    float total = 0;
    for (const float sum : sums) {
        total += sum;
    }
    return total;
}

}  // namespace

RouterScores::RouterScores(std::vector<Probe> probes) {
    n_embd_ = probes.empty() ? 0 : probes.front().weight.size();
    std::vector<bool> columns(probes.size(), false);
    for (Probe & probe : probes) {
        if (probe.weight.empty() || probe.weight.size() != n_embd_) {
            throw std::invalid_argument("probes of different sizes");
        }
        if (probe.point >= columns.size() || probe.column >= columns.size()) {
            throw std::invalid_argument("a point or column without a probe");
        }
        columns[probe.column] = true;
        n_columns_ = std::max(n_columns_, probe.column + 1);
        points_.resize(std::max(points_.size(), probe.point + 1));
        points_[probe.point].push_back(std::move(probe));
    }
    const auto is_empty = [](const std::vector<Probe> & point) { return point.empty(); };
    const auto end = columns.begin() + static_cast<std::ptrdiff_t>(n_columns_);
    if (points_.empty() || std::any_of(points_.begin(), points_.end(), is_empty) ||
        std::find(columns.begin(), end, false) != end) {
        throw std::invalid_argument("a point or column without a probe");
    }
    next_.assign(points_.size(), 0);
}

void RouterScores::seek(size_t position) {
    if (position > size()) {
        throw std::invalid_argument("router scores before this position are missing");
    }
    std::fill(next_.begin(), next_.end(), position);
    scores_.resize(position * n_columns_);
}

void RouterScores::read(int point, const float * rows, int64_t n_rows, int64_t n_embd) {
    const auto at = static_cast<size_t>(point);
    const auto width = static_cast<size_t>(n_embd);
    if (at >= points_.size() || width != n_embd_) {
        throw std::runtime_error("the hidden states do not have the routers' shape");
    }
    const auto start = std::chrono::steady_clock::now();
    const size_t first = next_[at];
    const size_t end = first + static_cast<size_t>(n_rows);
    if (scores_.size() < end * n_columns_) {
        scores_.resize(end * n_columns_);  // zeros, to add to
    }
    for (size_t position = first; position < end; ++position, rows += width) {
        const float mean_square = dot(rows, rows, width) / static_cast<float>(width);
        for (const Probe & probe : points_[at]) {
            add(probe, rows, mean_square, scores_[position * n_columns_ + probe.column]);
        }
    }
    next_[at] = end;
    seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void RouterScores::add(const Probe & probe, const float * row, float mean_square, float & value) {
    const float linear = dot(probe.weight.data(), row, n_embd_) / std::sqrt(mean_square + probe.norm_eps) + probe.bias;
    const float sum = value + (probe.sigmoid ? 1.0F / (1.0F + std::exp(-linear)) : linear);
    if (std::isfinite(sum)) {
        value = sum;
        return;
    }
    ++not_finite_;
    value = probe.sigmoid ? 1.0F : std::numeric_limits<float>::infinity();
}

size_t RouterScores::size() const { return *std::min_element(next_.begin(), next_.end()); }

std::vector<float> RouterScores::scores() const {
    return std::vector<float>(scores_.begin(), scores_.begin() + static_cast<std::ptrdiff_t>(size() * n_columns_));
}

void RouterScores::load(std::vector<float> scores) {
    if (scores.size() % n_columns_ != 0) {
        throw std::invalid_argument("router scores must be [positions, columns]");
    }
    scores_ = std::move(scores);
    std::fill(next_.begin(), next_.end(), scores_.size() / n_columns_);
}

}  // namespace first_cpp
