// Attention in a training, inside each sequence of packed rows: kernels.cpp includes this once for each instruction set, after
// lanes.h. Scores, their softmax and all sums are fp32; what is multiplied is of T.
//
// As in FlashAttention-2 (arXiv 2307.08691, algorithms 1 and 2) scores are computed again for the gradients, a block of
// queries at a time; unlike there, a block meets all of its keys at once, since a head's keys fit into a core's cache.

constexpr int64_t kQueryBlock = 48;  // whole vectors, and rows of whole tiles

// What a product takes in one step: one number of fp32, or two of bf16 that are multiplied and added.
template <typename T>
struct Step;
template <>
struct Step<float> {
  typedef float Unit;
  static constexpr int64_t kCount = 1;
};
template <>
struct Step<Bf16> {
  typedef uint32_t Unit;
  static constexpr int64_t kCount = 2;
};

LX_INLINE Lanes loaded(const float* at) { return load(at); }
LX_INLINE Lanes multiplied(Lanes sum, float a, Lanes b) { return sum + b * a; }

// The next 16 columns of one step: of a row, or of two.
LX_INLINE void write_step(float* to, const Lanes* x) { store(to, x[0]); }

#ifdef LX_PAIRS
LX_INLINE __m512bh loaded(const uint32_t* at) { return (__m512bh)_mm512_loadu_si512(at); }
LX_INLINE Lanes multiplied(Lanes sum, uint32_t a, __m512bh b) {
  return (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(static_cast<int>(a)), b);
}

LX_INLINE void write_step(uint32_t* to, const Lanes* x) {
  const Words low = __builtin_convertvector(narrowed(x[0]), Words), high = __builtin_convertvector(narrowed(x[1]), Words);
  const Words both = low | high << 16;
  std::memcpy(to, &both, sizeof both);
}
#endif

// The left side of a product: step i of row r is at[r · row + i · step].
template <typename Unit>
struct Left {
  const Unit* at;
  int64_t row, step;
};

// The right side: panels [steps, 16] of 16 columns each, `panel` apart.
template <typename Unit>
struct Right {
  const Unit* at;
  int64_t panel, steps;
};

template <int kRows, int kPanels, typename Unit>
LX_INLINE void product_tile(const Left<Unit>& a, const Right<Unit>& b, float* c, int64_t width, bool add) {
  Lanes sums[kRows][kPanels] = {};
  for (int64_t i = 0; i < b.steps; ++i) {
    decltype(loaded(b.at)) w[kPanels];
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) w[p] = loaded(b.at + p * b.panel + i * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const Unit unit = a.at[r * a.row + i * a.step];
#pragma GCC unroll 2
      for (int p = 0; p < kPanels; ++p) sums[r][p] = multiplied(sums[r][p], unit, w[p]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) {
      float* to = c + r * width + p * kLanes;
      store(to, add ? load(to) + sums[r][p] : sums[r][p]);
    }
  }
}

template <int kPanels, typename Unit>
LX_INLINE void product_columns(Left<Unit> a, int64_t rows, const Right<Unit>& b, float* c, int64_t width, bool add) {
  constexpr int kTall = kVectors == 1 ? 12 : kVectors == 2 ? 6 : 2;  // sums that fit into the registers
  for (; rows >= kTall; rows -= kTall, a.at += kTall * a.row, c += kTall * width) {
    product_tile<kTall, kPanels>(a, b, c, width, add);
  }
  constexpr int kShort = kVectors == 1 ? 4 : 2;
  for (; rows >= kShort; rows -= kShort, a.at += kShort * a.row, c += kShort * width) {
    product_tile<kShort, kPanels>(a, b, c, width, add);
  }
  for (; rows > 0; --rows, a.at += a.row, c += width) product_tile<1, kPanels>(a, b, c, width, add);
}

// c [rows, width] ← a b of `columns` columns, or that added to c.
template <typename Unit>
LX_INLINE void product(const Left<Unit>& a, int64_t rows, Right<Unit> b, int64_t columns, float* c, int64_t width, bool add) {
  if (kVectors == 1) {
    for (; columns > kLanes; columns -= 2 * kLanes, b.at += 2 * b.panel, c += 2 * kLanes) {
      product_columns<2>(a, rows, b, c, width, add);
    }
  }
  for (; columns > 0; columns -= kLanes, b.at += b.panel, c += kLanes) product_columns<1>(a, rows, b, c, width, add);
}

// Rows [rows, d], `stride` numbers apart, as panels whose columns are the rows: [rows / 16, d, 16] in steps along d, where the
// last rows may be missing.
template <typename T, typename Unit = typename Step<T>::Unit>
LX_INLINE void pack_columns(const T* x, int64_t rows, int64_t stride, int64_t d, Unit* to) {
  const int64_t steps = d / Step<T>::kCount;
  for (int64_t first = 0; first < rows; first += kLanes, to += steps * kLanes) {
    for (int64_t r = 0; r < kLanes; ++r) {
      const Unit* from = reinterpret_cast<const Unit*>(x + (first + r) * stride);
      for (int64_t i = 0; i < steps; ++i) to[i * kLanes + r] = first + r < rows ? from[i] : Unit{};
    }
  }
}

// The same rows as panels whose steps are the rows: [d / 16, steps, 16], where the last rows may be missing.
template <typename T, typename Unit = typename Step<T>::Unit>
LX_INLINE void pack_rows(const T* x, int64_t rows, int64_t stride, int64_t d, int64_t steps, Unit* to) {
  constexpr int64_t kCount = Step<T>::kCount;
  for (int64_t j = 0; j < d; j += kLanes) {
    for (int64_t i = 0; i < steps; ++i, to += kLanes) {
      Lanes each[kCount];
      for (int64_t c = 0; c < kCount; ++c) {
        const int64_t r = i * kCount + c;
        each[c] = r < rows ? read(x + r * stride + j, kLanes) : Lanes{};
      }
      write_step(to, each);
    }
  }
}

// One head of keys in one sequence, and where a block of its queries begins.
template <typename T>
struct Place {
  int64_t first, n, padded;  // rows of the sequence, and so many rounded up to whole vectors
  int64_t kv, steps;         // where its keys and values begin; steps of a row
  int64_t from, width;       // the keys that the block sees, whole vectors
  int64_t rows, at;          // the block's queries, and where they begin
};

template <typename T>
LX_INLINE Place<T> place_of(const PackedAttention<T>& job, int64_t sequence, int64_t kv_head) {
  Place<T> place = {};
  place.first = job.bounds[sequence], place.n = job.bounds[sequence + 1] - place.first;
  place.padded = (place.n + kLanes - 1) / kLanes * kLanes, place.steps = job.d / Step<T>::kCount;
  place.kv = (place.first * job.kv + kv_head) * job.d;
  return place;
}

template <typename T>
LX_INLINE void move_to(Place<T>& place, const PackedAttention<T>& job, int64_t head, int64_t query) {
  place.rows = std::min(kQueryBlock, place.n - query);
  place.at = ((place.first + query) * job.heads + head) * job.d;
  place.from = job.window > 0 ? std::max<int64_t>(0, query + 1 - job.window) / kLanes * kLanes : 0;
  place.width = (job.causal ? std::min(place.padded, query + kQueryBlock) : place.padded) - place.from;
}

// Which of the 16 keys from `key` on a query sees, of n.
template <typename T>
LX_INLINE Whole sees(const PackedAttention<T>& job, int64_t query, int64_t key, int64_t n) {
  const Whole at = Whole{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + static_cast<int32_t>(key);
  const Whole before = at < static_cast<int32_t>(job.causal ? query + 1 : n);
  return job.window > 0 ? before & (at > static_cast<int32_t>(query - job.window)) : before;
}

// Numbers of 4 bytes that a pass needs: packed keys and values, their gradients, and what a block of queries takes.
inline int64_t attention_scratch(int64_t longest, int64_t d) {
  const int64_t padded = (longest + kLanes - 1) / kLanes * kLanes;
  return 5 * padded * d + kQueryBlock * (3 * d + 5 * padded);
}

template <typename T>
LX_INLINE void attention_forward_of(const PackedAttention<T>& job, int64_t sequence, int64_t kv_head, float* scratch) {
  using Unit = typename Step<T>::Unit;
  constexpr int64_t kCount = Step<T>::kCount;
  Place<T> place = place_of(job, sequence, kv_head);
  const int64_t n = place.n, d = job.d, padded = place.padded, steps = place.steps, group = job.heads / job.kv;
  const int64_t stride = job.heads * d;
  float *scores = scratch, *sums = scores + kQueryBlock * padded, *rest = sums + kQueryBlock * d;
  Unit *keys = reinterpret_cast<Unit*>(rest), *values = keys + padded * steps;
  T* weights = reinterpret_cast<T*>(values + padded * steps);
  pack_columns(job.k + place.kv, n, job.kv * d, d, keys);
  pack_rows(job.v + place.kv, n, job.kv * d, d, padded / kCount, values);
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    for (int64_t query = 0; query < n; query += kQueryBlock) {
      move_to(place, job, head, query);
      const int64_t width = place.width;
      const Left<Unit> queries = {reinterpret_cast<const Unit*>(job.q + place.at), stride / kCount, 1};
      product(queries, place.rows, Right<Unit>{keys + place.from * steps, steps * kLanes, steps}, width, scores, width, false);
      float scale[kQueryBlock];
      for (int64_t r = 0; r < place.rows; ++r) {
        float* own = scores + r * width;
        Lanes most = all(-INFINITY);
        for (int64_t t = 0; t < width; t += kLanes) {
          const Lanes x = sees(job, query + r, place.from + t, n) ? load(own + t) * job.scale : all(-INFINITY);
          store(own + t, x);
          most = x > most ? x : most;
        }
        float each[kLanes];
        store(each, most);
        const float top = *std::max_element(each, each + kLanes);
        Lanes totals = {};
        for (int64_t t = 0; t < width; t += kLanes) {
          const Lanes weight = exp_nonpositive(load(own + t) - top);
          totals += weight;
          write(weights + r * width + t, weight, kLanes);
        }
        const float total = sum(totals);
        scale[r] = 1.0f / total;
        float* kept = job.softmax + 2 * ((place.first + query + r) * job.heads + head);
        kept[0] = top, kept[1] = scale[r];
      }
      const Right<Unit> seen = {values + place.from / kCount * kLanes, padded / kCount * kLanes, width / kCount};
      const Left<Unit> weighed = {reinterpret_cast<const Unit*>(weights), width / kCount, 1};
      product(weighed, place.rows, seen, d, sums, d, false);
      for (int64_t r = 0; r < place.rows; ++r) {
        for (int64_t j = 0; j < d; j += kLanes) {
          write(job.y + place.at + r * stride + j, load(sums + r * d + j) * scale[r], kLanes);
        }
      }
    }
  }
}

// With P the softmax of the scores S: dV = Pᵀ dY, dS = P ∘ (dY Vᵀ − Σ dY∘Y) · scale, dQ = dS K, dK = dSᵀ Q.
template <typename T>
LX_INLINE void attention_backward_of(const PackedAttention<T>& job, int64_t sequence, int64_t kv_head, float* scratch) {
  using Unit = typename Step<T>::Unit;
  constexpr int64_t kCount = Step<T>::kCount;
  Place<T> place = place_of(job, sequence, kv_head);
  const int64_t n = place.n, d = job.d, padded = place.padded, steps = place.steps, group = job.heads / job.kv;
  const int64_t stride = job.heads * d, block = kQueryBlock * padded;
  float *dk = scratch, *dv = dk + padded * d, *scores = dv + padded * d, *products = scores + block;
  float *sums = products + block, *rest = sums + kQueryBlock * d;
  Unit *keys = reinterpret_cast<Unit*>(rest), *values = keys + padded * steps, *key_rows = values + padded * steps;
  Unit *queries = key_rows + padded * steps, *gradients = queries + kQueryBlock * steps;
  Unit *turned_weights = gradients + kQueryBlock * steps, *turned = turned_weights + block / kCount;
  T* changes = reinterpret_cast<T*>(turned + block / kCount);
  pack_columns(job.k + place.kv, n, job.kv * d, d, keys);
  pack_columns(job.v + place.kv, n, job.kv * d, d, values);
  pack_rows(job.k + place.kv, n, job.kv * d, d, padded / kCount, key_rows);
  std::fill(dk, dk + 2 * padded * d, 0.0f);
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    for (int64_t query = 0; query < n; query += kQueryBlock) {
      move_to(place, job, head, query);
      const int64_t rows = place.rows, width = place.width, row_steps = (rows + kCount - 1) / kCount;
      const T *q = job.q + place.at, *dy = job.dy + place.at, *y = job.y + place.at;
      const auto left = [&](const T* x) { return Left<Unit>{reinterpret_cast<const Unit*>(x), stride / kCount, 1}; };
      const auto right = [&](const Unit* x) { return Right<Unit>{x + place.from * steps, steps * kLanes, steps}; };
      product(left(q), rows, right(keys), width, scores, width, false);
      product(left(dy), rows, right(values), width, products, width, false);
      pack_rows(q, rows, stride, d, row_steps, queries);
      pack_rows(dy, rows, stride, d, row_steps, gradients);
      for (int64_t r = 0; r < rows; r += kCount) {
        float along[kCount] = {};
        const float* kept[kCount] = {};
        const int64_t count = std::min(kCount, rows - r);
        for (int64_t i = 0; i < count; ++i) {
          Lanes both = {};
          for (int64_t j = (r + i) * stride; j < (r + i) * stride + d; j += kLanes) both += read(dy + j, kLanes) * read(y + j, kLanes);
          along[i] = sum(both), kept[i] = job.softmax + 2 * ((place.first + query + r + i) * job.heads + head);
        }
        for (int64_t t = 0; t < width; t += kLanes) {
          Lanes weight[kCount] = {}, change[kCount] = {};
          for (int64_t i = 0; i < count; ++i) {
            const int64_t at = (r + i) * width + t;
            const Lanes p = exp_nonpositive(load(scores + at) * job.scale - kept[i][0]) * kept[i][1];
            weight[i] = sees(job, query + r + i, place.from + t, n) ? p : Lanes{};
            change[i] = weight[i] * (load(products + at) - along[i]) * job.scale;
            write(changes + at, change[i], kLanes);
          }
          write_step(turned_weights + r / kCount * width + t, weight);
          write_step(turned + r / kCount * width + t, change);
        }
      }
      const int64_t into = place.from * d, panel = row_steps * kLanes;
      product(Left<Unit>{turned_weights, 1, width}, width, Right<Unit>{gradients, panel, row_steps}, d, dv + into, d, true);
      product(Left<Unit>{turned, 1, width}, width, Right<Unit>{queries, panel, row_steps}, d, dk + into, d, true);
      const Right<Unit> seen = {key_rows + place.from / kCount * kLanes, padded / kCount * kLanes, width / kCount};
      product(Left<Unit>{reinterpret_cast<const Unit*>(changes), width / kCount, 1}, rows, seen, d, sums, d, false);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t j = 0; j < d; j += kLanes) write(job.dq + place.at + r * stride + j, load(sums + r * d + j), kLanes);
      }
    }
  }
  for (int64_t t = 0; t < n; ++t) {
    for (int64_t j = 0; j < d; j += kLanes) {
      const int64_t to = place.kv + t * job.kv * d + j;
      write(job.dk + to, load(dk + t * d + j), kLanes);
      write(job.dv + to, load(dv + t * d + j), kLanes);
    }
  }
}

// The queries of one head of keys in one sequence, with `attention_scratch` numbers; no templates, as in rows.h.
#define LX_ATTENTION(T)                                                                                                       \
  inline void attention(const PackedAttention<T>& job, bool backward, int64_t sequence, int64_t kv_head, float* scratch) {   \
    if (backward) return attention_backward_of(job, sequence, kv_head, scratch);                                             \
    attention_forward_of(job, sequence, kv_head, scratch);                                                                   \
  }
LX_ATTENTION(float)
#ifdef LX_PAIRS
LX_ATTENTION(Bf16)
#endif
#undef LX_ATTENTION
