// Rows quantised by type name.
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "ggml.h"
#include "quantize.h"

using namespace first_cpp;
using namespace first_cpp::testing;

TEST(quantize_f32_is_a_copy) {
    const std::vector<float> rows{1.0F, -2.5F, 3.0F, 0.125F};
    const std::vector<char> bytes = quantize("f32", rows.data(), 2, 2);
    CHECK_EQUAL(bytes.size(), rows.size() * sizeof(float));
    CHECK(std::memcmp(bytes.data(), rows.data(), bytes.size()) == 0);
}

// Eight bits keep a row of 32 to within half a step of its scale.
TEST(quantize_q8_0_is_close_in_every_row) {
    std::vector<float> rows(64);
    for (size_t i = 0; i < rows.size(); ++i) {
        rows[i] = static_cast<float>(i % 7) - 3.0F;
    }
    const std::vector<char> bytes = quantize("q8_0", rows.data(), 2, 32);
    CHECK_EQUAL(bytes.size(), 2 * ggml_row_size(GGML_TYPE_Q8_0, 32));
    std::vector<float> back(rows.size());
    ggml_get_type_traits(GGML_TYPE_Q8_0)->to_float(bytes.data(), back.data(), 64);
    for (size_t i = 0; i < rows.size(); ++i) {
        CHECK(std::abs(rows[i] - back[i]) <= 3.0F / 127.0F);
    }
}

TEST(quantize_blocks) {
    CHECK_EQUAL(block_size("f16"), 1);
    CHECK_EQUAL(block_size("q4_0"), 32);
    CHECK_THROWS(std::invalid_argument, block_size("q4_9"));
}

TEST(quantize_refuses_what_ggml_would_abort_on) {
    const std::vector<float> row(48);
    CHECK_THROWS(std::invalid_argument, quantize("no type", row.data(), 1, 32));
    CHECK_THROWS(std::invalid_argument, quantize("i32", row.data(), 1, 32));
    CHECK_THROWS(std::invalid_argument, quantize("q4_0", row.data(), 1, 48));  // no whole number of blocks
    CHECK_THROWS(std::invalid_argument, quantize("iq2_xxs", row.data(), 1, 256));
}
