// What the functions of rows.h take: pointers to contiguous rows, of fp32 or bf16. kernels.cpp computes, training.cpp asks.

#pragma once

#include <cstdint>

struct Bf16 {
  uint16_t bits;
};

template <typename T>
struct Norm {
  const T *x, *add;     // [rows, d]; add may be null
  const float* weight;  // [d]
  T *sum, *y;           // [rows, d]; sum only where there is an add
  float* scales;        // [rows]; null where no gradient is wanted
  int64_t d;
  float eps;
  bool round;           // whether x̂ is rounded to T before the weight
};

template <typename T>
struct NormBack {
  const T *dy, *add, *x;  // [rows, d]; add may be null
  const float *weight, *scales;
  T* dx;
  int64_t d;
};

template <typename T>
struct Turn {
  const T* x;          // [rows, heads, d]
  const T *cos, *sin;  // [rows, half]
  T* y;
  int64_t heads, d, half;
  float sign;
};

template <typename T>
struct Gated {
  const T *gate, *up, *dy;
  T *y, *dgate, *dup;  // forward: y; backward: the others
};

template <typename T>
struct Entropy {
  T* logits;               // [rows, v]
  const int64_t* targets;  // [rows]
  const float* weights;    // [rows]
  float* losses;           // [rows]
  int64_t v;
};

// yᵀ x in fp64; what the functions call its rows are kTall columns of y.
template <typename T>
struct WideProduct {
  const T *y, *x;   // [m, o] and [m, i], with so many numbers from one row to the next
  double* product;  // [o, i]
  int64_t m, o, i, y_step, x_step;
};
constexpr int64_t kTall = 4;

// Adds Σ of yᵀ x over blocks of rows, each summed in fp32, in fp64; what the functions call its rows are kTile columns of y.
template <typename T>
struct BlockProduct {
  const T *y, *x;         // [m, o] and [m, i]
  const int64_t* bounds;  // [blocks + 1]: rows before each block, up to m
  double* product;        // [o, i]
  int64_t blocks, o, i;
};
constexpr int64_t kTile = 8;

// Sums of columns of dy, and of dy · x, each product rounded to fp32, in fp64; what the function calls its rows are kColumns columns.
template <typename T>
struct ColumnSums {
  const T *dy, *x;             // [m, d]; x may be null
  const float *mean, *scale;   // [m]: x is taken as (x − mean) · scale, unless null
  double *sums, *products;     // [d]; products only where there is an x
  int64_t m, d;
};
constexpr int64_t kColumns = 64;

// Attention inside each sequence of packed rows. The heads of q may be more than those of k and v: each of these serves as
// many that lie side by side.
template <typename T>
struct PackedAttention {
  const T *q, *k, *v;     // [m, heads, d], [m, kv, d] twice; d a multiple of 16
  const int32_t* bounds;  // [sequences + 1]: rows before each sequence
  T* y;                   // as q; the forward pass writes it, the backward pass reads it
  float* softmax;         // [m, heads, 2], as y: the largest score s, and 1 / Σ e^(score − s)
  const T* dy;            // of the backward pass, which writes the others: as y, q, k and v
  T *dq, *dk, *dv;
  int64_t sequences, longest, heads, kv, d, window;  // keys that a query sees, itself included; 0 = all
  float scale;
  bool causal;
};

// Of bf16 only where lx_multiplies_narrow().
void lx_attend_packed(const PackedAttention<float>& job, bool backward, int64_t threads);
void lx_attend_packed(const PackedAttention<Bf16>& job, bool backward, int64_t threads);

// The functions, and what each takes.
#define LX_EACH_ROWS(each)      \
  each(norm_forward, Norm)      \
  each(norm_backward, NormBack) \
  each(turn, Turn)              \
  each(gated_forward, Gated)    \
  each(gated_backward, Gated)   \
  each(entropy, Entropy)        \
  each(wide_product, WideProduct) \
  each(block_product, BlockProduct) \
  each(column_sums, ColumnSums)

// `rows` rows of about `width` numbers each, on up to `threads` threads.
#define LX_DECLARED(name, Job)                                                             \
  void lx_##name(const Job<float>& job, int64_t rows, int64_t width, int64_t threads); \
  void lx_##name(const Job<Bf16>& job, int64_t rows, int64_t width, int64_t threads);
LX_EACH_ROWS(LX_DECLARED)
#undef LX_DECLARED
