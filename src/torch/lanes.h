// Vectors of 16 numbers, for the kernels of kernels.h and rows.h: kernels.cpp includes this once for each instruction set,
// before them. Vectors are taken apart into what the target has before a function is cloned or inlined into another's.

typedef float Lanes __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t Whole __attribute__((vector_size(64)));

LX_INLINE Lanes load(const float* at) { return *reinterpret_cast<const Lanes*>(at); }
LX_INLINE void store(float* at, Lanes x) { *reinterpret_cast<Lanes*>(at) = x; }
LX_INLINE Lanes all(float x) { return x - Lanes{}; }

// e^x for x <= 0, to 1.2e-7 relative, and 0 below -87: the power series around the nearest multiple of ln 2, which is taken
// off in two parts, so that a large x loses nothing, and then added to the exponent.
LX_INLINE Lanes exp_nonpositive(Lanes x) {
  const Lanes shifted = x * 1.44269504f + 12582912.0f;  // 1.5 · 2^23: the whole number is in the last bits
  const Lanes multiple = shifted - 12582912.0f, r = x - multiple * 0.693145752f - multiple * 1.42860677e-6f;
  Lanes p = all(1.98412698e-4f);
  p = p * r + 1.38888889e-3f;
  p = p * r + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  Whole bits, whole;
  std::memcpy(&bits, &p, sizeof p);
  std::memcpy(&whole, &shifted, sizeof shifted);
  bits += whole << 23;
  std::memcpy(&p, &bits, sizeof p);
  return x < all(-87.0f) ? Lanes{} : p;
}

// 1 / (1 + e^-x).
LX_INLINE Lanes sigmoid(Lanes x) {
  const Lanes small = exp_nonpositive(x > 0 ? -x : x);  // e^-|x|
  return (x > 0 ? all(1.0f) : small) / (1.0f + small);
}

// The sum of the lanes, in halves.
LX_INLINE float sum(Lanes x) {
#ifndef __clang__
  if (kVectors == 1) {
    x += __builtin_shuffle(x, Whole{8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7});
    x += __builtin_shuffle(x, Whole{4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11});
    x += __builtin_shuffle(x, Whole{2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13});
    x += __builtin_shuffle(x, Whole{1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14});
    return x[0];
  }
#endif
  float at[kLanes];
  store(at, x);
  for (int step = kLanes / 2; step > 0; step /= 2) {
    for (int i = 0; i < step; ++i) at[i] += at[i + step];
  }
  return at[0];
}

// The next `count` numbers in fp32, zeros behind them.
LX_INLINE Lanes read(const float* at, int64_t count) {
  if (count >= kLanes) return load(at);
  float some[kLanes] = {};
  std::copy(at, at + count, some);
  return load(some);
}

LX_INLINE void write(float* at, Lanes x, int64_t count) {
  if (count >= kLanes) return store(at, x);
  float some[kLanes];
  store(some, x);
  std::copy(some, some + count, at);
}

typedef uint16_t Halves __attribute__((vector_size(32), aligned(2), may_alias));
typedef uint32_t Words __attribute__((vector_size(64)));

LX_INLINE Lanes widened(Halves bits) {
  const Words words = __builtin_convertvector(bits, Words) << 16;
  Lanes x;
  std::memcpy(&x, &words, sizeof x);
  return x;
}

// The bits of the nearest numbers in bf16, ties to even.
LX_INLINE Halves narrowed(Lanes x) {
#ifdef LX_PAIRS
  return (Halves)_mm512_cvtneps_pbh((__m512)x);
#else
  Words words;
  std::memcpy(&words, &x, sizeof x);
  words = (words + 0x7fff + ((words >> 16) & 1)) >> 16;
  words = x == x ? words : Words{} + 0x7fc0;
  return __builtin_convertvector(words, Halves);
#endif
}

LX_INLINE Lanes read(const Bf16* at, int64_t count) {
  if (count >= kLanes) return widened(*reinterpret_cast<const Halves*>(at));
  Bf16 some[kLanes] = {};
  std::copy(at, at + count, some);
  return widened(*reinterpret_cast<const Halves*>(some));
}

LX_INLINE void write(Bf16* at, Lanes x, int64_t count) {
  if (count >= kLanes) {
    *reinterpret_cast<Halves*>(at) = narrowed(x);
    return;
  }
  Bf16 some[kLanes];
  *reinterpret_cast<Halves*>(some) = narrowed(x);
  std::copy(some, some + count, at);
}

LX_INLINE double number(const float* at) { return *at; }
LX_INLINE double number(const Bf16* at) {
  const uint32_t bits = static_cast<uint32_t>(at->bits) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

LX_INLINE Lanes rounded(Lanes x, const float*) { return x; }
LX_INLINE Lanes rounded(Lanes x, const Bf16*) { return widened(narrowed(x)); }
