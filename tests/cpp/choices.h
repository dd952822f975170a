// Where random cases come from: a seed in tests, the fuzzer's bytes in fuzzers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <random>

namespace first_cpp::testing {

class Choices {
public:
    explicit Choices(uint64_t seed) : random_(seed) {}
    Choices(const uint8_t * bytes, size_t n_bytes) : bytes_(bytes), left_(n_bytes) {}

    // 0 .. n-1; 0 once the bytes have run out, so the shortest input is the plainest case.
    uint32_t below(uint32_t n) { return n < 2 ? 0 : draw(n) % n; }
    int between(int low, int high) { return low + static_cast<int>(below(static_cast<uint32_t>(high - low + 1))); }
    bool one_in(uint32_t n) { return below(n) == n - 1; }

    template <typename T>
    T one_of(std::initializer_list<T> values) {
        return *(values.begin() + below(static_cast<uint32_t>(values.size())));
    }

    bool from_seed() const { return bytes_ == nullptr; }

private:
    uint32_t draw(uint32_t n) {
        if (from_seed()) {
            return static_cast<uint32_t>(random_());
        }
        uint32_t value = 0;
        for (uint32_t reach = 1; reach < n && left_ > 0; reach = reach > 0xFFFFFF ? n : reach << 8, --left_) {
            value = value << 8 | *bytes_++;
        }
        return value;
    }

    std::mt19937_64 random_;
    const uint8_t * bytes_ = nullptr;
    size_t left_ = 0;
};

}  // namespace first_cpp::testing
