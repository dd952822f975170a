// Runs the tests whose names contain one of the arguments, all without arguments.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>

#include "check.h"
#include "ggml.h"

int main(int argc, char ** argv) {
    ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr);  // it reports every broken file
    int failed = 0;
    int run = 0;
    for (const auto & test : first_cpp::testing::all_tests()) {
        const auto named = [&](const char * part) { return std::strstr(test.name, part) != nullptr; };
        if (argc > 1 && std::none_of(argv + 1, argv + argc, named)) {
            continue;
        }
        ++run;
        try {
            test.run();
        } catch (const std::exception & e) {
            ++failed;
            std::printf("FAILED %s: %s\n", test.name, e.what());
        }
    }
    std::printf("%d C++ tests, %d failed\n", run, failed);
    return failed == 0 && run > 0 ? 0 : 1;
}
