// Gives memory of the KV cache back to the system, page by page.
#include "kv_pages.h"

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace first_cpp {

namespace {

size_t page_size() {
#ifdef _WIN32
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return info.dwPageSize;
#else
    const long size = sysconf(_SC_PAGESIZE);
    return size > 0 ? static_cast<size_t>(size) : 4096;
#endif
}

bool release(void * begin, size_t n_bytes) {
#if defined(_WIN32)
    return DiscardVirtualMemory(begin, n_bytes) == ERROR_SUCCESS;
#elif defined(__APPLE__)
    // MADV_DONTNEED keeps pages resident there; this call frees them lazily and counts them as freed at once.
    return madvise(begin, n_bytes, MADV_FREE_REUSABLE) == 0;
#else
    return madvise(begin, n_bytes, MADV_DONTNEED) == 0;
#endif
}

}  // namespace

size_t release_pages(uintptr_t address, size_t n_bytes) {
    const size_t page = page_size();
    const uintptr_t begin = (address + page - 1) / page * page;
    const uintptr_t end = (address + n_bytes) / page * page;
    if (end <= begin || !release(reinterpret_cast<void *>(begin), end - begin)) {
        return 0;
    }
    return end - begin;
}

}  // namespace first_cpp
