// The kernels that come with the package, for each type of element. Arrays are contiguous, rows of
// matrices too; a launch may have more threads than there are elements.

template <typename T>
__device__ void vector_add(const T *a, const T *b, T *out, unsigned long long count) {
    const unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x;
    if (i < count)
        out[i] = a[i] + b[i];
}

// One thread for each element of the product; x goes over its rows, y over its columns.
template <typename T>
__device__ void matrix_multiply(const T *a, const T *b, T *c, unsigned long long rows,
                                unsigned long long inner, unsigned long long columns) {
    const unsigned long long row = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x;
    const unsigned long long column = blockIdx.y * (unsigned long long)blockDim.y + threadIdx.y;
    if (row >= rows || column >= columns)
        return;
    T total = 0;
    for (unsigned long long k = 0; k < inner; ++k)
        total += a[row * inner + k] * b[k * columns + column];
    c[row * columns + column] = total;
}

#define KERNELS(T, NAME)                                                                           \
    extern "C" __global__ void vector_add_##NAME(const T *a, const T *b, T *out,                   \
                                                 unsigned long long count) {                       \
        vector_add(a, b, out, count);                                                              \
    }                                                                                              \
    extern "C" __global__ void matrix_multiply_##NAME(const T *a, const T *b, T *c,                \
                                                      unsigned long long rows,                     \
                                                      unsigned long long inner,                    \
                                                      unsigned long long columns) {                \
        matrix_multiply(a, b, c, rows, inner, columns);                                            \
    }

KERNELS(float, float32)
KERNELS(double, float64)
KERNELS(int, int32)
KERNELS(long long, int64)
