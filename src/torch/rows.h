// What training computes row by row between its products, in fp32 whatever T is: kernels.cpp includes this once for each
// instruction set, after lanes.h. Each function takes the rows begin..end.

// sum ← x + add, where there is an `add`; y ← x̂ · weight of that, with x̂ = x / root of the mean square.
template <typename T>
LX_INLINE void norm_forward_of(const Norm<T>& job, int64_t begin, int64_t end) {
  const int64_t d = job.d;
  for (int64_t r = begin; r < end; ++r) {
    const T* x = job.x + r * d;
    Lanes squares = {};
    if (job.add) {
      T* total = job.sum + r * d;
      for (int64_t j = 0; j < d; j += kLanes) {
        const Lanes both = rounded(read(x + j, d - j) + read(job.add + r * d + j, d - j), x);
        write(total + j, both, d - j);
        squares += both * both;
      }
      x = total;
    } else {
      for (int64_t j = 0; j < d; j += kLanes) {
        const Lanes each = read(x + j, d - j);
        squares += each * each;
      }
    }
    // One rounding: an error here is that of the whole row.
    const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(sum(squares)) / d + job.eps));
    if (job.scales) job.scales[r] = scale;
    for (int64_t j = 0; j < d; j += kLanes) {
      const Lanes unit = read(x + j, d - j) * scale;
      write(job.y + r * d + j, (job.round ? rounded(unit, x) : unit) * read(job.weight + j, d - j), d - j);
    }
  }
}

// dx ← the gradient of x through y, plus that of the sum, where there is one: with g = dy · weight and s the scale,
// s·g − x · s³ · mean(g·x).
template <typename T>
LX_INLINE void norm_backward_of(const NormBack<T>& job, int64_t begin, int64_t end) {
  const int64_t d = job.d;
  for (int64_t r = begin; r < end; ++r) {
    const T *x = job.x + r * d, *dy = job.dy + r * d;
    Lanes products = {};
    for (int64_t j = 0; j < d; j += kLanes) {
      products += read(dy + j, d - j) * read(job.weight + j, d - j) * read(x + j, d - j);
    }
    const float scale = job.scales[r];
    const double cubed = static_cast<double>(scale) * scale * scale;
    const float along = static_cast<float>(cubed * sum(products) / d);
    for (int64_t j = 0; j < d; j += kLanes) {
      Lanes dx = read(dy + j, d - j) * read(job.weight + j, d - j) * scale - read(x + j, d - j) * along;
      if (job.add) dx += read(job.add + r * d + j, d - j);
      write(job.dx + r * d + j, dx, d - j);
    }
  }
}

// Rotates the pairs (i, i + half) of each head by the row's angles, backwards where `sign` is -1.
template <typename T>
LX_INLINE void turn_of(const Turn<T>& job, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const T *cos = job.cos + r * job.half, *sin = job.sin + r * job.half;
    for (int64_t h = 0; h < job.heads; ++h) {
      const T* x = job.x + (r * job.heads + h) * job.d;
      T* y = job.y + (r * job.heads + h) * job.d;
      for (int64_t j = 0; j < job.half; j += kLanes) {
        const int64_t left = job.half - j;
        const Lanes a = read(x + j, left), b = read(x + job.half + j, left);
        const Lanes c = read(cos + j, left), s = read(sin + j, left) * job.sign;
        write(y + j, a * c - b * s, left);
        write(y + job.half + j, b * c + a * s, left);
      }
      std::copy(x + 2 * job.half, x + job.d, y + 2 * job.half);
    }
  }
}

// y ← silu(gate) · up.
template <typename T>
LX_INLINE void gated_forward_of(const Gated<T>& job, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += kLanes) {
    const Lanes x = read(job.gate + i, end - i);
    write(job.y + i, x * sigmoid(x) * read(job.up + i, end - i), end - i);
  }
}

// The gradients of both from that of y.
template <typename T>
LX_INLINE void gated_backward_of(const Gated<T>& job, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += kLanes) {
    const Lanes x = read(job.gate + i, end - i), s = sigmoid(x), dy = read(job.dy + i, end - i);
    write(job.dgate + i, dy * read(job.up + i, end - i) * s * (1.0f + x * (1.0f - s)), end - i);
    write(job.dup + i, dy * x * s, end - i);
  }
}

// losses ← −log softmax(x)[target]; x ← the gradient of weight · loss.
template <typename T>
LX_INLINE void entropy_of(const Entropy<T>& job, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    T* x = job.logits + r * job.v;
    Lanes most = all(-INFINITY);
    for (int64_t j = 0; j < job.v; j += kLanes) {
      Lanes each = read(x + j, job.v - j);
      if (job.v - j < kLanes) {  // what lies behind the row counts for nothing
        for (int64_t i = job.v - j; i < kLanes; ++i) each[i] = -INFINITY;
      }
      most = each > most ? each : most;
    }
    float lanes[kLanes];
    store(lanes, most);
    const float top = *std::max_element(lanes, lanes + kLanes);
    double total = 0;
    for (int64_t block = 0; block < job.v; block += 64 * kLanes) {
      Lanes some = {};
      for (int64_t j = block; j < std::min(job.v, block + 64 * kLanes); j += kLanes) {
        Lanes each = exp_nonpositive(read(x + j, job.v - j) - top);
        if (job.v - j < kLanes) {
          for (int64_t i = job.v - j; i < kLanes; ++i) each[i] = 0;
        }
        some += each;
      }
      total += sum(some);
    }
    // Rounded as libtorch rounds it: an error of the logarithm is that of the whole row, and gradients are small differences.
    const float log_total = static_cast<float>(std::log(total)), weight = job.weights[r];
    const int64_t target = job.targets[r];
    const float own = read(x + target, 1)[0] - top - log_total;
    job.losses[r] = -own;
    for (int64_t j = 0; j < job.v; j += kLanes) {
      write(x + j, exp_nonpositive(read(x + j, job.v - j) - top - log_total) * weight, job.v - j);
    }
    write(x + target, all((std::exp(own) - 1.0f) * weight), 1);
  }
}

// product ← yᵀ x, whose terms are exact.
template <typename T>
LX_INLINE void wide_product_of(const WideProduct<T>& job, int64_t begin, int64_t end) {
  typedef float Half __attribute__((vector_size(32), aligned(4), may_alias));
  typedef double Wide __attribute__((vector_size(64)));
  for (int64_t top = begin * kTall; top < std::min(job.o, end * kTall); top += kTall) {
    const int64_t tall = std::min(kTall, job.o - top);
    for (int64_t left = 0; left < job.i; left += kLanes) {
      const int64_t wide = std::min(kLanes, job.i - left);
      Wide sums[kTall][2] = {};
      for (int64_t r = 0; r < job.m; ++r) {
        const T* y = job.y + r * job.y_step + top;
        const Lanes x = read(job.x + r * job.x_step + left, wide);
        Half halves[2];
        std::memcpy(halves, &x, sizeof x);
        const Wide low = __builtin_convertvector(halves[0], Wide), high = __builtin_convertvector(halves[1], Wide);
        for (int64_t q = 0; q < kTall; ++q) {
          const double each = q < tall ? number(y + q) : 0.0;
          sums[q][0] += low * each;
          sums[q][1] += high * each;
        }
      }
      for (int64_t q = 0; q < tall; ++q) {
        double numbers[kLanes];
        std::memcpy(numbers, sums[q], sizeof numbers);
        std::copy(numbers, numbers + wide, job.product + (top + q) * job.i + left);
      }
    }
  }
}

template <typename T>
LX_INLINE void column_sums_of(const ColumnSums<T>& job, int64_t begin, int64_t end) {
  typedef float Half __attribute__((vector_size(32), aligned(4), may_alias));
  typedef double Wide __attribute__((vector_size(64)));
  constexpr int64_t parts = kColumns / kLanes;
  const auto add = [](Wide* sums, const Lanes& each) {
    Half halves[2];
    std::memcpy(halves, &each, sizeof each);
    for (int64_t i = 0; i < 2; ++i) sums[i] += __builtin_convertvector(halves[i], Wide);
  };
  for (int64_t j = begin * kColumns; j < std::min(job.d, end * kColumns); j += kColumns) {
    const int64_t wide = std::min(kColumns, job.d - j);
    Wide sums[2 * parts] = {}, products[2 * parts] = {};
    for (int64_t r = 0; r < job.m; ++r) {
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t at = r * job.d + j + part * kLanes, count = std::clamp<int64_t>(wide - part * kLanes, 0, kLanes);
        const Lanes dy = read(job.dy + at, count);
        add(sums + 2 * part, dy);
        if (!job.x) continue;
        Lanes x = read(job.x + at, count);
        if (job.scale) x = (x - job.mean[r]) * job.scale[r];
        add(products + 2 * part, dy * x);
      }
    }
    double numbers[2][kColumns];
    std::memcpy(numbers[0], sums, sizeof sums);
    std::memcpy(numbers[1], products, sizeof products);
    std::copy(numbers[0], numbers[0] + wide, job.sums + j);
    if (job.x) std::copy(numbers[1], numbers[1] + wide, job.products + j);
  }
}

// One tile of a product: columns top.. of y and left.. of x, of the blocks begin..end; `whole` if these are as many as the tile has.
template <bool whole, typename T>
LX_INLINE void tile_of_blocks(const BlockProduct<T>& job, int64_t top, int64_t left, int64_t begin, int64_t end) {
  // As many sums as the target has registers for.
  constexpr int64_t tall = kVectors == 1 ? kTile : kTile / 2, across = kVectors == 1 ? 2 : 1;
  const int64_t rows = whole ? tall : std::min(tall, job.o - top);
  double all[tall][across * kLanes] = {};
  for (int64_t block = begin; block < end; ++block) {
    Lanes sums[tall][across] = {};
    for (int64_t r = job.bounds[block]; r < job.bounds[block + 1]; ++r) {
      const T *y = job.y + r * job.o + top, *x = job.x + r * job.i + left;
      Lanes each[across];
      for (int64_t j = 0; j < across; ++j) {
        each[j] = whole ? read(x + j * kLanes, kLanes) : read(x + j * kLanes, std::clamp<int64_t>(job.i - left - j * kLanes, 0, kLanes));
      }
      for (int64_t q = 0; q < tall; ++q) {
        const float own = static_cast<float>(number(y + (whole ? q : std::min(q, rows - 1))));
        for (int64_t j = 0; j < across; ++j) sums[q][j] += own * each[j];
      }
    }
    float numbers[tall][across * kLanes];
    for (int64_t q = 0; q < tall; ++q) {
      for (int64_t j = 0; j < across; ++j) store(numbers[q] + j * kLanes, sums[q][j]);
    }
    for (int64_t q = 0; q < tall; ++q) {
      for (int64_t j = 0; j < across * kLanes; ++j) all[q][j] += numbers[q][j];
    }
  }
  const int64_t wide = std::min(across * kLanes, job.i - left);
  for (int64_t q = 0; q < rows; ++q) {
    for (int64_t j = 0; j < wide; ++j) job.product[(top + q) * job.i + left + j] += all[q][j];
  }
}

template <typename T>
LX_INLINE void block_product_of(const BlockProduct<T>& job, int64_t begin, int64_t end) {
  constexpr int64_t tall = kVectors == 1 ? kTile : kTile / 2, wide = (kVectors == 1 ? 2 : 1) * kLanes;
  constexpr int64_t most = 256;  // rows whose columns of x stay in the first cache
  const int64_t last = std::min(job.o, end * kTile);
  for (int64_t first = 0, next = 0; first < job.blocks; first = next) {
    while (next < job.blocks && (next == first || job.bounds[next + 1] - job.bounds[first] <= most)) ++next;
    for (int64_t left = 0; left < job.i; left += wide) {
      for (int64_t top = begin * kTile; top < last; top += tall) {
        if (top + tall <= job.o && left + wide <= job.i) {
          tile_of_blocks<true>(job, top, left, first, next);
        } else {
          tile_of_blocks<false>(job, top, left, first, next);
        }
      }
    }
  }
}

// Of both kinds; no templates, which are compiled for the target at the end of the file.
#define LX_OF_BOTH(name, Job)                                                                               \
  inline void name(const Job<float>& job, int64_t begin, int64_t end) { name##_of(job, begin, end); } \
  inline void name(const Job<Bf16>& job, int64_t begin, int64_t end) { name##_of(job, begin, end); }
LX_EACH_ROWS(LX_OF_BOTH)
#undef LX_OF_BOTH
