// Tests are functions that throw when something does not hold. Fuzzers use the same checks: there the throw is the crash.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace first_cpp::testing {

struct Test {
    const char * name;
    void (*run)();
};

inline std::vector<Test> & all_tests() {
    static std::vector<Test> tests;
    return tests;
}

struct Registered {
    Registered(const char * name, void (*run)()) { all_tests().push_back(Test{name, run}); }
};

[[noreturn]] inline void fail(const char * file, int line, const std::string & what) {
    throw std::logic_error(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

template <typename A, typename B>
void check_equal(const A & a, const B & b, const char * what, const char * file, int line) {
    if (!(a == b)) {
        std::ostringstream text;
        text << what << ": " << a << " is not " << b;
        fail(file, line, text.str());
    }
}

}  // namespace first_cpp::testing

#define TEST(name)                                                                 \
    static void name();                                                            \
    static const ::first_cpp::testing::Registered registered_##name{#name, &name}; \
    static void name()

#define CHECK(condition)                                                       \
    do {                                                                       \
        if (!(condition)) {                                                    \
            ::first_cpp::testing::fail(__FILE__, __LINE__, "not " #condition); \
        }                                                                      \
    } while (false)

#define CHECK_EQUAL(a, b) ::first_cpp::testing::check_equal((a), (b), #a, __FILE__, __LINE__)

#define CHECK_THROWS(type, expression)                                                       \
    do {                                                                                     \
        bool thrown = false;                                                                 \
        try {                                                                                \
            static_cast<void>(expression);                                                   \
        } catch (const type &) {                                                             \
            thrown = true;                                                                   \
        }                                                                                    \
        if (!thrown) {                                                                       \
            ::first_cpp::testing::fail(__FILE__, __LINE__, #expression " throws no " #type); \
        }                                                                                    \
    } while (false)
