// libcublas: products of matrices with the checks of the real one, and that every matrix lies in device
// memory. Column-major; computed in f32 or f64 with fused multiply-adds, rounded once.
#include "device.h"
#include "registry.h"

#include "candle.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <set>

namespace host_device {

// The pool is libcuda's.
void in_parallel_impl(uint64_t count, uint64_t grain, const std::function<void(uint64_t, uint64_t)>& range) {
    using Range = std::function<void(uint64_t, uint64_t)>;
    calm_host_device_parallel(
        count, grain,
        [](const void* context, uint64_t first, uint64_t last) {
            (*static_cast<const Range*>(context))(first, last);
        },
        &range);
}

}  // namespace host_device

namespace {

using candle::f16;

// cublasStatus_t.
enum Blas : int { DONE = 0, NO_HANDLE = 1, INVALID = 7, FAILED = 13, UNSUPPORTED = 15 };

// cudaDataType_t and cublasComputeType_t.
enum Data : int { F32 = 0, F64 = 1, F16 = 2, BF16 = 14 };
constexpr int COMPUTE_32F = 68, COMPUTE_32F_PEDANTIC = 69, COMPUTE_64F = 70, COMPUTE_64F_PEDANTIC = 71;
constexpr int COMPUTE_FAST_FIRST = 74, COMPUTE_FAST_LAST = 78;

struct Handle {
    void* stream = nullptr;
    int pointer_mode = 0;
    int math_mode = 0;
};

std::set<Handle*>& handles() {
    static auto& all = *new std::set<Handle*>;
    return all;
}

#define HANDLE(handle)                 \
    if (handles().count(handle) == 0) { \
        return NO_HANDLE;              \
    }

Blas complain(const char* what, Blas status) {
    calm_host_device_complain((std::string("cuBLAS: ") + what).c_str());
    return status;
}

size_t size_of(int type) { return type == F64 ? 8 : type == F32 ? 4 : 2; }

// One matrix of a product: what it is, and how far it is to the one of the next batch.
struct Matrix {
    const void* data;
    int type;
    int64_t leading;
    int64_t stride;
};

struct Product {
    bool a_turned, b_turned;
    int64_t m, n, k, batch;
    double alpha, beta;
    Matrix a, b, c;
};

// Element (i, j) of op(A) is at i * row + j * column.
struct View {
    const void* data;
    int type;
    int64_t row, column;
};

template <class W> W read(const View& v, int64_t at) {
    switch (v.type) {
    case F64: return W(static_cast<const double*>(v.data)[at]);
    case BF16: return W(candle::wide(static_cast<const bf16*>(v.data)[at]));
    case F16: return W(candle::wide(static_cast<const f16*>(v.data)[at]));
    default: return W(static_cast<const float*>(v.data)[at]);
    }
}

template <class W> void write(void* data, int type, int64_t at, W x) {
    switch (type) {
    case F64: static_cast<double*>(data)[at] = double(x); break;
    case BF16: static_cast<bf16*>(data)[at] = candle::narrow<bf16>(float(x)); break;
    case F16: static_cast<f16*>(data)[at] = candle::narrow<f16>(float(x)); break;
    default: static_cast<float*>(data)[at] = float(x);
    }
}

// A tile has ROWS vectors of rows and COLUMNS columns; its sums stay in registers.
constexpr int VECTORS = 2, COLUMNS = 6;
template <class W> using Vector __attribute__((vector_size(32))) = W;
template <class W> constexpr int LANES_OF = 32 / sizeof(W);
template <class W> constexpr int ROWS = VECTORS * LANES_OF<W>;

// Panels of WIDTH rows (or columns): panel p holds, for each of the k terms, WIDTH numbers; zeros behind.
template <class W>
std::vector<W> pack(const View& v, int64_t count, int64_t k, int64_t width, int64_t across, int64_t along) {
    const int64_t panels = (count + width - 1) / width;
    std::vector<W> packed(size_t(panels * width * k));
    host_device::in_parallel(uint64_t(panels), 1 + 16384 / uint64_t(width * k + 1), [&](uint64_t p) {
        W* to = packed.data() + int64_t(p) * width * k;
        const int64_t first = int64_t(p) * width;
        const int64_t used = std::min(width, count - first);
        for (int64_t term = 0; term < k; term++, to += width) {
            for (int64_t i = 0; i < used; i++) {
                to[i] = read<W>(v, (first + i) * across + term * along);
            }
        }
    });
    return packed;
}

template <class W> void tile(const W* a, const W* b, int64_t k, W* out) {
    constexpr int L = LANES_OF<W>;
    Vector<W> sums[COLUMNS][VECTORS] = {};
    for (int64_t term = 0; term < k; term++, a += ROWS<W>, b += COLUMNS) {
        Vector<W> column[VECTORS];
        memcpy(column, a, sizeof column);
        for (int j = 0; j < COLUMNS; j++) {
            for (int i = 0; i < VECTORS; i++) {
                sums[j][i] += column[i] * b[j];
            }
        }
    }
    static_assert(sizeof sums == sizeof(W) * L * VECTORS * COLUMNS, "a tile");
    memcpy(out, sums, sizeof sums);
}

template <class W> void multiply_one(const Product& p, const View& a, const View& b, void* c) {
    const std::vector<W> left = pack<W>(a, p.m, p.k, ROWS<W>, a.row, a.column);
    const std::vector<W> right = pack<W>(b, p.n, p.k, COLUMNS, b.column, b.row);
    const int64_t down = (p.m + ROWS<W> - 1) / ROWS<W>;
    const int64_t along = (p.n + COLUMNS - 1) / COLUMNS;
    const uint64_t tile_work = uint64_t(ROWS<W> * COLUMNS * p.k + 1);
    host_device::in_parallel(uint64_t(down * along), 1 + (1 << 18) / tile_work, [&](uint64_t place) {
        const int64_t first_row = int64_t(place) / along * ROWS<W>;
        const int64_t first_column = int64_t(place) % along * COLUMNS;
        W sums[COLUMNS * ROWS<W>];
        tile(left.data() + first_row * p.k, right.data() + first_column * p.k, p.k, sums);
        for (int64_t j = first_column; j < std::min(p.n, first_column + COLUMNS); j++) {
            for (int64_t i = first_row; i < std::min(p.m, first_row + ROWS<W>); i++) {
                const int64_t at = j * p.c.leading + i;
                W x = W(p.alpha) * sums[(j - first_column) * ROWS<W> + i - first_row];
                if (p.beta != 0.0) {
                    x += W(p.beta) * read<W>(View{c, p.c.type, 1, 1}, at);
                }
                write(c, p.c.type, at, x);
            }
        }
    });
}

const void* batch_of(const Matrix& m, int64_t i) {
    return static_cast<const char*>(m.data) + i * m.stride * int64_t(size_of(m.type));
}

View view_of(const Matrix& m, bool turned, int64_t i) {
    return turned ? View{batch_of(m, i), m.type, m.leading, 1} : View{batch_of(m, i), m.type, 1, m.leading};
}

void multiply(const void* data) {
    Product p;
    memcpy(&p, data, sizeof p);
    calm_host_device_set_running("a product of matrices");
    for (int64_t i = 0; i < p.batch; i++) {
        const View a = view_of(p.a, p.a_turned, i);
        const View b = view_of(p.b, p.b_turned, i);
        void* const c = const_cast<void*>(batch_of(p.c, i));
        if (p.c.type == F64) {
            multiply_one<double>(p, a, b, c);
        } else {
            multiply_one<float>(p, a, b, c);
        }
    }
    calm_host_device_set_running(nullptr);
    calm_host_device_check_surroundings(p.c.data, "a product of matrices");
}

bool check_matrix(const char* name, const Matrix& m, int64_t rows, int64_t columns, int64_t batch) {
    if (rows == 0 || columns == 0 || batch == 0) {
        return true;
    }
    const int64_t last = (columns - 1) * m.leading + rows + (batch - 1) * std::max<int64_t>(m.stride, 0);
    return calm_host_device_check_memory(m.data, uint64_t(last) * size_of(m.type), name) == 0;
}

bool is_supported(const Product& p, int compute) {
    const bool alike = p.a.type == p.b.type;
    if (compute == COMPUTE_64F || compute == COMPUTE_64F_PEDANTIC) {
        return alike && p.a.type == F64 && p.c.type == F64;
    }
    const bool fast = compute >= COMPUTE_FAST_FIRST && compute <= COMPUTE_FAST_LAST;
    if (!fast && compute != COMPUTE_32F && compute != COMPUTE_32F_PEDANTIC) {
        return false;
    }
    return alike && p.a.type != F64 && (p.c.type == p.a.type || p.c.type == F32);
}

double number_at(const void* at, int compute) {
    if (compute == COMPUTE_64F || compute == COMPUTE_64F_PEDANTIC) {
        return *static_cast<const double*>(at);
    }
    return double(*static_cast<const float*>(at));
}

bool is_operation(int op) { return op >= 0 && op <= 2; }

int gemm(Handle* handle, int op_a, int op_b, Product p, const void* alpha, const void* beta, int compute) {
    HANDLE(handle)
    p.a_turned = op_a != 0;
    p.b_turned = op_b != 0;
    const int64_t a_rows = p.a_turned ? p.k : p.m, a_columns = p.a_turned ? p.m : p.k;
    const int64_t b_rows = p.b_turned ? p.n : p.k, b_columns = p.b_turned ? p.k : p.n;
    if (!is_operation(op_a) || !is_operation(op_b) || p.m < 0 || p.n < 0 || p.k < 0 || p.batch < 0) {
        return complain("an operation or a size that there is not", INVALID);
    }
    const auto too_small = [](const Matrix& m, int64_t rows) { return m.leading < std::max<int64_t>(1, rows); };
    if (too_small(p.a, a_rows) || too_small(p.b, b_rows) || too_small(p.c, p.m)) {
        return complain("a leading dimension below the number of rows", INVALID);
    }
    if (alpha == nullptr || beta == nullptr) {
        return complain("no alpha or no beta", INVALID);
    }
    if (handle->pointer_mode != 0) {
        return complain("alpha and beta on the device", UNSUPPORTED);
    }
    if (!is_supported(p, compute)) {
        return complain("these types with this compute type", UNSUPPORTED);
    }
    p.alpha = number_at(alpha, compute);
    p.beta = number_at(beta, compute);
    if (p.batch > 1 && p.c.stride < (p.n - 1) * p.c.leading + p.m) {
        return complain("the products of a batch overlap", INVALID);
    }
    if (p.m == 0 || p.n == 0 || p.batch == 0) {
        return DONE;
    }
    if (!check_matrix("matrix A", p.a, a_rows, a_columns, p.batch) ||
        !check_matrix("matrix B", p.b, b_rows, b_columns, p.batch) ||
        !check_matrix("matrix C", p.c, p.m, p.n, p.batch)) {
        return INVALID;
    }
    return calm_host_device_enqueue(handle->stream, multiply, &p, sizeof p) == 0 ? DONE : FAILED;
}

}  // namespace

EXPORT int cublasCreate_v2(Handle** handle) {
    host_device::SharedGuard guard;
    *handle = *handles().insert(new Handle).first;
    return DONE;
}

EXPORT int cublasDestroy_v2(Handle* handle) {
    host_device::SharedGuard guard;
    HANDLE(handle)
    handles().erase(handle);
    delete handle;
    return DONE;
}

EXPORT int cublasSetStream_v2(Handle* handle, void* stream) {
    host_device::SharedGuard guard;
    HANDLE(handle)
    if (calm_host_device_check_stream(stream) != 0) {
        return INVALID;
    }
    handle->stream = stream;
    return DONE;
}

EXPORT int cublasGetStream_v2(Handle* handle, void** stream) {
    host_device::SharedGuard guard;
    HANDLE(handle)
    *stream = handle->stream;
    return DONE;
}

EXPORT int cublasSetPointerMode_v2(Handle* handle, int mode) {
    host_device::SharedGuard guard;
    HANDLE(handle)
    handle->pointer_mode = mode;
    return DONE;
}

EXPORT int cublasGetPointerMode_v2(Handle* handle, int* mode) {
    host_device::SharedGuard guard;
    HANDLE(handle)
    *mode = handle->pointer_mode;
    return DONE;
}

EXPORT int cublasSetMathMode(Handle* handle, int mode) {
    host_device::SharedGuard guard;
    HANDLE(handle)
    handle->math_mode = mode;
    return DONE;
}

EXPORT int cublasGetMathMode(Handle* handle, int* mode) {
    host_device::SharedGuard guard;
    HANDLE(handle)
    *mode = handle->math_mode;
    return DONE;
}

EXPORT int cublasSetWorkspace_v2(Handle* handle, void* workspace, size_t bytes) {
    host_device::SharedGuard guard;
    HANDLE(handle)
    return calm_host_device_check_memory(workspace, bytes, "cublasSetWorkspace") == 0 ? DONE : INVALID;
}

EXPORT int cublasGetVersion_v2(Handle* handle, int* version) {
    host_device::SharedGuard guard;
    HANDLE(handle)
    *version = 130000;
    return DONE;
}

EXPORT int cublasGemmStridedBatchedEx(Handle* handle, int op_a, int op_b, int m, int n, int k,
                                      const void* alpha, const void* a, int a_type, int lda, long long a_stride,
                                      const void* b, int b_type, int ldb, long long b_stride, const void* beta,
                                      void* c, int c_type, int ldc, long long c_stride, int batch, int compute,
                                      int) {
    host_device::SharedGuard guard;
    const Product p = {false, false, m, n, k, batch, 0.0, 0.0,
                       Matrix{a, a_type, lda, a_stride}, Matrix{b, b_type, ldb, b_stride},
                       Matrix{c, c_type, ldc, c_stride}};
    return gemm(handle, op_a, op_b, p, alpha, beta, compute);
}

EXPORT int cublasGemmEx(Handle* handle, int op_a, int op_b, int m, int n, int k, const void* alpha,
                        const void* a, int a_type, int lda, const void* b, int b_type, int ldb,
                        const void* beta, void* c, int c_type, int ldc, int compute, int algorithm) {
    return cublasGemmStridedBatchedEx(handle, op_a, op_b, m, n, k, alpha, a, a_type, lda, 0, b, b_type, ldb, 0,
                                      beta, c, c_type, ldc, 0, 1, compute, algorithm);
}

// The products of one type.
#define PLAIN_GEMM(letter, T, type, compute)                                                                \
    EXPORT int cublas##letter##gemmStridedBatched(                                                          \
        Handle* handle, int op_a, int op_b, int m, int n, int k, const T* alpha, const T* a, int lda,       \
        long long a_stride, const T* b, int ldb, long long b_stride, const T* beta, T* c, int ldc,          \
        long long c_stride, int batch) {                                                                    \
        return cublasGemmStridedBatchedEx(handle, op_a, op_b, m, n, k, alpha, a, type, lda, a_stride, b,    \
                                          type, ldb, b_stride, beta, c, type, ldc, c_stride, batch,         \
                                          compute, -1);                                                     \
    }                                                                                                       \
    EXPORT int cublas##letter##gemm_v2(Handle* handle, int op_a, int op_b, int m, int n, int k,             \
                                       const T* alpha, const T* a, int lda, const T* b, int ldb,            \
                                       const T* beta, T* c, int ldc) {                                      \
        return cublasGemmEx(handle, op_a, op_b, m, n, k, alpha, a, type, lda, b, type, ldb, beta, c, type,  \
                            ldc, compute, -1);                                                              \
    }
PLAIN_GEMM(S, float, F32, COMPUTE_32F)
PLAIN_GEMM(D, double, F64, COMPUTE_64F)
