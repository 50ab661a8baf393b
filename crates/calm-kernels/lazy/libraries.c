/* CUDA's libraries, opened when they are asked for (build.rs says why).
 *
 * functions.inc has a line FUNCTION(library, name) for every function that candle calls. Each becomes a jump
 * to where its slot points: at first to a function that returns an error code, after open_cuda_libraries to
 * the library's own. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdio.h>

#define COUNT 6

/* Names that each library has had, the newest first; the order is that of LIBRARIES in build.rs. */
static const char *const files[COUNT][4] = {
    {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"},
    {"libcublas.so.13", "libcublas.so.12", "libcublas.so"},
    {"libcurand.so.10", "libcurand.so"},
    {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"},
    {"libnccl.so.2", "libnccl.so"},
    {"libcuda.so.1", "libcuda.so"},
};
#define NVRTC 3
#define NCCL 4

/* "Not initialized" of each library: the answer of every function before the libraries are open. */
static int missing_0(void) { return 1; }
static int missing_1(void) { return 1; }
static int missing_2(void) { return 203; }
static int missing_3(void) { return 11; }
static int missing_4(void) { return 3; }
static int missing_5(void) { return 3; }

#define FUNCTION(library, name) \
    __attribute__((visibility("hidden"))) void *slot_##name = (void *)missing_##library;
#include "functions.inc"
#undef FUNCTION

#if defined(__x86_64__)
#define JUMP(name) "jmp *slot_" #name "(%rip)\n"
#elif defined(__aarch64__)
#define JUMP(name) "adrp x16, slot_" #name "\nldr x16, [x16, :lo12:slot_" #name "]\nbr x16\n"
#else
#error "the feature cuda is for x86-64 and aarch64"
#endif
#define FUNCTION(library, name) \
    __asm__(".text\n.globl " #name "\n.type " #name ", @function\n" #name ":\n" JUMP(name));
#include "functions.inc"
#undef FUNCTION

struct function {
    int library;
    const char *name;
    void **slot;
};

static const struct function functions[] = {
#define FUNCTION(library, name) {library, #name, &slot_##name},
#include "functions.inc"
#undef FUNCTION
};

/* Opens the libraries; 0, or 1 and the reason of the first that is missing in message. Not for two threads
 * at once. */
int open_cuda_libraries(char *message, size_t size) {
    void *handles[COUNT] = {0};
    /* The driver, which comes last, says most when it is missing. */
    for (int i = COUNT - 1; i >= 0; i--) {
        for (int j = 0; handles[i] == NULL && j < 4 && files[i][j] != NULL; j++) {
            handles[i] = dlopen(files[i][j], RTLD_NOW | RTLD_LOCAL);
        }
        /* NVRTC compiles kernels at run time, which nothing here does; NCCL is for several GPUs, and who asks for
         * its version hears that it is missing. */
        if (handles[i] == NULL && i != NVRTC && i != NCCL) {
            snprintf(message, size, "%s", files[i][0]);
            return 1;
        }
    }
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        void *handle = handles[functions[i].library];
        void *found = handle == NULL ? NULL : dlsym(handle, functions[i].name);
        if (found != NULL) {
            *functions[i].slot = found;
        }
    }
    return 0;
}
