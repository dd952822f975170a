// The GGUF reader over any bytes, through a file in memory.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "ggml.h"
#include "gguf_case.h"

namespace {
int file = -1;
std::string path;
}  // namespace

extern "C" int LLVMFuzzerInitialize(int *, char ***) {
    ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    file = memfd_create("fuzz.gguf", 0);
    path = "/proc/self/fd/" + std::to_string(file);
    if (file < 0) {
        std::abort();
    }
    return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * bytes, size_t n_bytes) {
    if (ftruncate(file, 0) != 0 || pwrite(file, bytes, n_bytes, 0) != static_cast<ssize_t>(n_bytes)) {
        std::abort();
    }
    first_cpp::testing::run_gguf_case(path);
    return 0;
}
