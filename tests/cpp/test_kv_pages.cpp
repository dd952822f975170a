// Pages are given back whole, and never one that is only partly in the range.
#include <cstring>
#include <vector>

#include "check.h"
#include "kv_pages.h"

using namespace first_cpp;
using namespace first_cpp::testing;

TEST(kv_pages_only_whole_pages_are_released) {
    constexpr size_t n = size_t{1} << 20;
    // A large vector is anonymous private memory of its own.
    std::vector<unsigned char> memory(n, 7);
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    const size_t begin = 1000;
    const size_t end = n - 3000;
    const size_t released = release_pages(address + begin, end - begin);
    CHECK(released <= end - begin);
#ifdef __linux__
    CHECK(released > 0 && released % 4096 == 0);
    size_t zero = 0;
    for (const unsigned char c : memory) {
        zero += c == 0 ? 1 : 0;
    }
    CHECK_EQUAL(zero, released);
#endif
    for (size_t i = 0; i < begin; ++i) {
        CHECK_EQUAL(memory[i], 7);
    }
    for (size_t i = end; i < n; ++i) {
        CHECK_EQUAL(memory[i], 7);
    }
    std::memset(memory.data(), 1, n);  // still usable
}

TEST(kv_pages_ranges_without_a_whole_page) {
    std::vector<unsigned char> memory(size_t{1} << 16, 7);
    const auto address = (reinterpret_cast<uintptr_t>(memory.data()) + 4095) / 4096 * 4096;
    CHECK_EQUAL(release_pages(address + 1, 4094), size_t{0});
    CHECK_EQUAL(release_pages(address, 0), size_t{0});
    CHECK_EQUAL(release_pages(address + 10, 1), size_t{0});
}
