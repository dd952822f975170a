// The graph patch over models that the bytes describe.
#include "ggml.h"
#include "patch_case.h"

extern "C" int LLVMFuzzerInitialize(int *, char ***) {
    ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * bytes, size_t n_bytes) {
    first_cpp::testing::Choices choices(bytes, n_bytes);
    first_cpp::testing::run_patch_case(choices);
    return 0;
}
