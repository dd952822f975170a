// GGUF files, whole and broken.
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "choices.h"
#include "gguf_case.h"
#include "gguf_file.h"

using namespace first_cpp;
using namespace first_cpp::testing;

namespace {

class TemporaryFile {
public:
    explicit TemporaryFile(const std::vector<char> & bytes) {
        std::ofstream(path_, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    }
    ~TemporaryFile() { std::filesystem::remove(path_); }
    std::string path() const { return path_.u8string(); }

private:
    std::filesystem::path path_ = std::filesystem::temp_directory_path() / "first_cpp_test.gguf";
};

// Every kind of value, and a tensor.
std::vector<char> whole_file() {
    GgufFile file;
    gguf_context * g = file.get();
    gguf_set_val_str(g, "general.architecture", "llama");
    gguf_set_val_u8(g, "u8", 1);
    gguf_set_val_i64(g, "i64", -1);
    gguf_set_val_f64(g, "f64", 0.5);
    gguf_set_val_bool(g, "bool", true);
    const float floats[] = {1.0F, 2.0F, 3.0F};
    gguf_set_arr_data(g, "floats", GGUF_TYPE_FLOAT32, floats, 3);
    const char * strings[] = {"a", "", "c"};
    gguf_set_arr_str(g, "strings", strings, 3);
    return file.metadata();
}

}  // namespace

TEST(gguf_file_reads_what_it_wrote) {
    const TemporaryFile written(whole_file());
    CHECK(run_gguf_case(written.path()));
    const GgufFile file(written.path());
    CHECK_EQUAL(file.keys().size(), size_t{7});
    CHECK_EQUAL(file.kind("floats"), "arr[f32]");
    CHECK_EQUAL(file.kind("strings"), "arr[str]");
    CHECK_EQUAL(file.kind("i64"), "i64");
    CHECK_EQUAL(file.kind("none"), "");
    CHECK_THROWS(std::invalid_argument, file.element_type(file.find("u8")));
    CHECK(file.metadata() == whole_file());
}

TEST(gguf_file_counts_values) {
    const TemporaryFile written(whole_file());
    const GgufFile file(written.path());
    CHECK_EQUAL(file.count("u8"), size_t{1});
    CHECK_EQUAL(file.count("strings"), size_t{3});
    CHECK_THROWS(MissingName, file.count("none"));
    CHECK_THROWS(MissingName, file.find("none"));
}

TEST(gguf_file_sets_replaces_and_removes_values) {
    GgufFile file;
    file.set_u32("u32", 7);
    file.set_u32("u32", 8);
    file.set_f32("f32", 0.25F);
    file.set_str("str", "two words");
    const float floats[] = {1.0F, 2.0F};
    file.set_f32_array("floats", floats, 2);
    file.set_bool_array("bools", {true, false, true});
    file.set_u32_array("u32s", {3, 1, 4000000000U});
    file.set_u32_array("no u32s", {});
    file.set_str("gone", "");
    CHECK(file.remove("gone"));
    CHECK(!file.remove("gone"));
    const TemporaryFile written(file.metadata());
    const GgufFile read(written.path());
    CHECK_EQUAL(read.keys().size(), size_t{7});
    CHECK_EQUAL(gguf_get_val_u32(read.get(), read.find("u32")), 8U);
    CHECK_EQUAL(gguf_get_val_f32(read.get(), read.find("f32")), 0.25F);
    CHECK_EQUAL(std::string(gguf_get_val_str(read.get(), read.find("str"))), "two words");
    CHECK_EQUAL(read.kind("floats"), "arr[f32]");
    CHECK_EQUAL(static_cast<const float *>(gguf_get_arr_data(read.get(), read.find("floats")))[1], 2.0F);
    CHECK_EQUAL(read.kind("bools"), "arr[bool]");
    CHECK_EQUAL(read.count("bools"), size_t{3});
    CHECK_EQUAL(read.kind("u32s"), "arr[u32]");
    CHECK_EQUAL(static_cast<const uint32_t *>(gguf_get_arr_data(read.get(), read.find("u32s")))[2], 4000000000U);
    CHECK_EQUAL(read.count("no u32s"), size_t{0});
}

TEST(gguf_file_declares_tensors) {
    GgufFile file;
    file.add_tensor_f16("a", 64, 2);
    file.add_tensor_f16("b", 32, 1);
    file.set_tensor_f32("b");
    CHECK_EQUAL(file.tensors().size(), size_t{2});
    CHECK_EQUAL(file.tensors()[0].type, "f16");
    CHECK(file.tensors()[0].shape == std::vector<int64_t>({64, 2}));
    CHECK_EQUAL(file.tensors()[1].type, "f32");
    CHECK_EQUAL(file.tensors()[1].n_bytes, uint64_t{32 * 4});
    CHECK_THROWS(MissingName, file.set_tensor_f32("c"));
    CHECK_THROWS(std::invalid_argument, file.add_tensor_f16("a", 1, 1));
    CHECK_THROWS(std::invalid_argument, file.add_tensor_f16("c", 0, 1));
    CHECK_THROWS(std::invalid_argument, file.add_tensor_f16(std::string(64, 'c'), 1, 1));
}

TEST(gguf_file_that_is_not_there) { CHECK_THROWS(std::invalid_argument, GgufFile("/no/such/file.gguf")); }

TEST(gguf_file_cut_anywhere_is_refused) {
    const std::vector<char> whole = whole_file();
    for (size_t n = 0; n + 32 < whole.size(); ++n) {  // the end is padding
        const TemporaryFile cut(std::vector<char>(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(n)));
        CHECK(!run_gguf_case(cut.path()));
    }
}

TEST(gguf_file_with_any_byte_changed_is_read_or_refused) {
    const std::vector<char> whole = whole_file();
    Choices choices(1);
    for (size_t i = 0; i < whole.size(); ++i) {
        for (const char value : {'\0', '\1', '\x7f', '\xff', static_cast<char>(whole[i] ^ (1 << choices.below(8)))}) {
            std::vector<char> changed = whole;
            changed[i] = value;
            const TemporaryFile file(changed);
            run_gguf_case(file.path());
        }
    }
}

// A vocabulary longer than the reader's buffer, with values that straddle its ends.
TEST(gguf_file_longer_than_the_buffer) {
    GgufFile file;
    std::vector<std::string> words;
    for (size_t i = 0; i < 60000; ++i) {
        words.push_back("word" + std::to_string(i * i));
    }
    std::vector<const char *> pointers;
    for (const std::string & word : words) {
        pointers.push_back(word.c_str());
    }
    gguf_set_arr_str(file.get(), "tokenizer.ggml.tokens", pointers.data(), pointers.size());
    const std::vector<float> scores(200000, 0.25F);
    gguf_set_arr_data(file.get(), "tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, scores.data(), scores.size());
    const TemporaryFile written(file.metadata());
    const GgufFile read(written.path());
    const int64_t id = read.find("tokenizer.ggml.tokens");
    CHECK_EQUAL(gguf_get_arr_n(read.get(), id), words.size());
    for (size_t i = 0; i < words.size(); ++i) {
        CHECK_EQUAL(std::string(gguf_get_arr_str(read.get(), id, i)), words[i]);
    }
    CHECK_EQUAL(gguf_get_arr_n(read.get(), read.find("tokenizer.ggml.scores")), scores.size());
}
