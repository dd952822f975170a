// The router scores over any floats, handed over in any batches.
#include "scores_case.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * bytes, size_t n_bytes) {
    first_cpp::testing::Choices choices(bytes, n_bytes);
    first_cpp::testing::run_scores_case(choices);
    return 0;
}
