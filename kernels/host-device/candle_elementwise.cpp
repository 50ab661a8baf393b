// candle's modules affine, unary, binary, cast, fill and ternary.
#include "candle.h"

#include <algorithm>

namespace candle {
namespace {

// ---- affine: x * mul + add, each rounded ----

template <class T>
void affine(Launch, size_t count, size_t dims, const size_t* info, const T* in, T* out, T mul, T add) {
    each_strided<1>(count, dims, info, [&](uint64_t i, const Walker<1>& w) {
        const Wide<T> x = wide(in == nullptr ? out[i] : in[w.at(0)]);
        out[i] = narrow<T>(rounded<T>(Wide<T>(x * wide(mul))) + wide(add));
    });
}

// ---- unary ----

template <class T, class Op>
void unary(Launch, size_t count, size_t dims, const size_t* info, const T* in, T* out) {
    each_strided<1>(count, dims, info, [&](uint64_t i, const Walker<1>& w) {
        const T x = in == nullptr ? out[i] : in[w.at(0)];
        if constexpr (std::is_void_v<Op>) {
            out[i] = x;
        } else {
            out[i] = narrow<T>(Op::of(wide(x)));
        }
    });
}

template <class T, class Op>
void unary_with(Launch, size_t count, size_t dims, const size_t* info, T parameter, const T* in, T* out) {
    each_strided<1>(count, dims, info, [&](uint64_t i, const Walker<1>& w) {
        out[i] = narrow<T>(Op::of(wide(in == nullptr ? out[i] : in[w.at(0)]), wide(parameter)));
    });
}

// A struct with the operation on f32 and f64.
#define OPERATION(name, expression)             \
    struct name {                               \
        template <class W> static W of(W x) {   \
            return W(expression);               \
        }                                       \
    };

OPERATION(Negative, -x)
OPERATION(Reciprocal, W(1) / x)
OPERATION(Exponential, std::exp(x))
OPERATION(Logarithm, std::log(x))
OPERATION(Sine, std::sin(x))
OPERATION(Cosine, std::cos(x))
OPERATION(Tangent, std::tanh(x))
OPERATION(Erf, std::erf(x))
OPERATION(Ceil, std::ceil(x))
OPERATION(Floor, std::floor(x))
OPERATION(Round, std::round(x))
OPERATION(NormalCdf, std::erfc(-x * W(M_SQRT1_2)) / W(2))
OPERATION(Absolute, std::fabs(x))
OPERATION(Square, x* x)
OPERATION(Root, std::sqrt(x))
OPERATION(Gelu, x / W(2) * (W(1) + std::tanh(W(M_2_SQRTPI * M_SQRT1_2) * (x + W(0.044715) * x * x * x))))
OPERATION(GeluErf, x* NormalCdf::of(x))
OPERATION(Relu, std::fmax(x, W(0)))
OPERATION(Silu, x / (W(1) + std::exp(-x)))
OPERATION(Sign, W(x > W(0)) - W(x < W(0)))
OPERATION(Sigmoid, W(1) / (W(1) + std::exp(-x)))

struct Power {
    template <class W> static W of(W x, W exponent) { return std::pow(x, exponent); }
};
struct Elu {
    template <class W> static W of(W x, W alpha) { return x > W(0) ? x : alpha * (std::exp(x) - W(1)); }
};

template <class Op> void add_unary(const char* root) {
    each_float_type([&](auto type) {
        using T = typename decltype(type)::type;
        add(name_of<T>(root), "unary", &unary<T, Op>);
    });
}

template <class Op> void add_unary_with(const char* root) {
    each_float_type([&](auto type) {
        using T = typename decltype(type)::type;
        add(name_of<T>(root), "unary", &unary_with<T, Op>);
    });
}

// ---- binary; `info` holds dimensions, strides of the left, strides of the right ----

template <class T, class Out, class Op>
void binary(Launch, size_t count, size_t dims, const size_t* info, const T* left, const T* right, Out* out) {
    each_strided<2>(count, dims, info, [&](uint64_t i, const Walker<2>& w) {
        const Wide<T> x = wide(left[w.at(0)]);
        const Wide<T> y = wide(right[w.at(1)]);
        if constexpr (std::is_same_v<T, Out>) {
            out[i] = narrow<T>(Wide<T>(Op::template of<T>(x, y)));
        } else {
            out[i] = Out(Op::template of<T>(x, y));
        }
    });
}

#define BINARY(name, expression)                                                     \
    struct name {                                                                    \
        template <class T> static auto of(Wide<T> x, Wide<T> y) { return expression; } \
    };

BINARY(Add, x + y)
BINARY(Subtract, x - y)
BINARY(Multiply, x* y)
BINARY(Equal, x == y)
BINARY(NotEqual, x != y)
BINARY(Less, x < y)
BINARY(LessEqual, x <= y)
BINARY(Greater, x > y)
BINARY(GreaterEqual, x >= y)

struct Divide {
    template <class T> static Wide<T> of(Wide<T> x, Wide<T> y) {
        if constexpr (IS_FLOAT<T>) {
            return x / y;
        } else {
            // A device does not trap.
            return y == 0 ? Wide<T>(-1) : Wide<T>(x / y);
        }
    }
};

// In half precision a NaN stays; in single and double precision the other number is taken.
template <bool largest> struct Extreme {
    template <class T> static Wide<T> of(Wide<T> x, Wide<T> y) {
        if constexpr (!IS_FLOAT<T>) {
            return largest ? std::max(x, y) : std::min(x, y);
        } else {
            if (sizeof(T) == 2 && (std::isnan(x) || std::isnan(y))) {
                return std::numeric_limits<Wide<T>>::quiet_NaN();
            }
            return largest ? std::fmax(x, y) : std::fmin(x, y);
        }
    }
};

template <class Op> void add_binary(const char* root) {
    each_element_type([&](auto type) {
        using T = typename decltype(type)::type;
        add(name_of<T>(root), "binary", &binary<T, T, Op>);
    });
}

template <class Op> void add_comparison(const char* root) {
    each_element_type([&](auto type) {
        using T = typename decltype(type)::type;
        add(name_of<T>(root), "binary", &binary<T, uint8_t, Op>);
    });
}

// ---- cast ----

// A device rounds towards zero and saturates; a NaN becomes 0.
template <class To, class From> To to_integer(From x) {
    if (std::isnan(x)) {
        return 0;
    }
    if (x <= From(std::numeric_limits<To>::lowest())) {
        return std::numeric_limits<To>::lowest();
    }
    // 2^bits of the type, which a float can hold.
    if (x >= std::ldexp(From(1), std::numeric_limits<To>::digits)) {
        return std::numeric_limits<To>::max();
    }
    return To(x);
}

template <class To, class From> To converted(From x) {
    if constexpr (std::is_integral_v<To> && IS_FLOAT<From>) {
        return to_integer<To>(wide(x));
    } else {
        return narrow<To>(Wide<To>(wide(x)));
    }
}

template <class From, class To>
void cast(Launch, size_t count, size_t dims, const size_t* info, const From* in, To* out) {
    each_strided<1>(count, dims, info, [&](uint64_t i, const Walker<1>& w) {
        out[i] = converted<To>(in[w.at(0)]);
    });
}

template <class From, class... To> void add_casts() {
    each_type<To...>([](auto type) {
        using T = typename decltype(type)::type;
        add(std::string("cast_") + suffix<From>() + "_" + suffix<T>(), "cast", &cast<From, T>);
    });
}

// ---- fill ----

template <class T> void fill(Launch, T* out, T value, size_t count) {
    std::fill(out, out + count, value);
}

template <class T>
void copy2d(Launch, const T* in, T* out, uint32_t rows, uint32_t columns, uint32_t in_stride,
            uint32_t out_stride) {
    for (uint64_t row = 0; row < rows; row++) {
        std::copy_n(in + row * in_stride, columns, out + row * out_stride);
    }
}

template <class T>
void const_set(Launch, size_t count, size_t dims, const size_t* info, T value, T* out) {
    each_strided<1>(count, dims, info, [&](uint64_t, const Walker<1>& w) { out[w.at(0)] = value; });
}

// ---- ternary; `info` holds dimensions, then the strides of the condition and of both sides ----

template <class T, class I>
void where(Launch, size_t count, size_t dims, const size_t* info, const I* condition, const T* yes,
           const T* no, T* out) {
    each_strided<3>(count, dims, info, [&](uint64_t i, const Walker<3>& w) {
        out[i] = condition[w.at(0)] != 0 ? yes[w.at(1)] : no[w.at(2)];
    });
}

bool add_all() {
    each_element_type([](auto type) {
        using T = typename decltype(type)::type;
        add(name_of<T>("affine"), "affine", &affine<T>);
        add(name_of<T>("ucopy"), "unary", &unary<T, void>);
        add(name_of<T>("fill"), "fill", &fill<T>);
        add(name_of<T>("copy2d"), "fill", &copy2d<T>);
        add(name_of<T>("const_set"), "fill", &const_set<T>);
        each_index_type([](auto index) {
            using I = typename decltype(index)::type;
            add(name_of<T>((std::string("where_") + suffix<I>()).c_str()), "ternary", &where<T, I>);
        });
    });
    add_unary<Negative>("uneg");
    add_unary<Reciprocal>("urecip");
    add_unary<Exponential>("uexp");
    add_unary<Logarithm>("ulog");
    add_unary<Sine>("usin");
    add_unary<Cosine>("ucos");
    add_unary<Tangent>("utanh");
    add_unary<Erf>("uerf");
    add_unary<Ceil>("uceil");
    add_unary<Floor>("ufloor");
    add_unary<Round>("uround");
    add_unary<NormalCdf>("unormcdf");
    add_unary<Absolute>("uabs");
    add_unary<Square>("usqr");
    add_unary<Root>("usqrt");
    add_unary<Gelu>("ugelu");
    add_unary<GeluErf>("ugelu_erf");
    add_unary<Relu>("urelu");
    add_unary<Silu>("usilu");
    add_unary<Sign>("usign");
    add_unary<Sigmoid>("usigmoid");
    add_unary_with<Power>("upowf");
    add_unary_with<Elu>("uelu");
    add_binary<Add>("badd");
    add_binary<Subtract>("bsub");
    add_binary<Multiply>("bmul");
    add_binary<Divide>("bdiv");
    add_binary<Extreme<true>>("bmaximum");
    add_binary<Extreme<false>>("bminimum");
    add_comparison<Equal>("eq");
    add_comparison<NotEqual>("ne");
    add_comparison<Less>("lt");
    add_comparison<LessEqual>("le");
    add_comparison<Greater>("gt");
    add_comparison<GreaterEqual>("ge");
    add_casts<bf16, bf16, f16, float, double, uint8_t, uint32_t>();
    add_casts<f16, bf16, f16, float, double, uint8_t, uint32_t>();
    add_casts<float, bf16, f16, float, double, uint8_t, uint32_t, int64_t>();
    add_casts<double, bf16, f16, float, double, uint8_t, uint32_t, int64_t>();
    add_casts<uint8_t, bf16, f16, float, double, uint8_t, uint32_t, int64_t>();
    add_casts<uint32_t, bf16, f16, float, double, uint8_t, uint32_t, int64_t>();
    add_casts<int64_t, float, double, uint8_t, uint32_t, int64_t>();
    return true;
}

const bool added = add_all();

}  // namespace
}  // namespace candle
