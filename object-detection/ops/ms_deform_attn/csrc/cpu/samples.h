// From sampling locations to addresses and factors, a block of samples at a time.
// Included once per instruction set, inside its namespace.

template <class A>
static inline A read_as(const void* data, Kind kind, int64_t i) {
  switch (kind) {
    case Kind::f32: return A(((const float*)data)[i]);
    case Kind::f64: return A(((const double*)data)[i]);
    case Kind::bf16: return A(widen(((const BFloat16*)data)[i]));
    default: return A(widen(((const Half*)data)[i]));
  }
}

template <class A>
static inline void write_as(void* data, Kind kind, int64_t i, A x) {
  switch (kind) {
    case Kind::f32: ((float*)data)[i] = float(x); break;
    case Kind::f64: ((double*)data)[i] = double(x); break;
    case Kind::bf16: narrow(float(x), (BFloat16*)data + i); break;
    default: narrow(float(x), (Half*)data + i);
  }
}

// Structure of arrays over up to `capacity` samples. The four corners are (y0,x0) (y0,x1) (y1,x0) (y1,x1).
template <class A>
struct Block {
  int64_t capacity;
  A *location, *weight;   // as given; location holds x and y by turns
  A *width, *height;      // of the sample's level
  int32_t* start;         // first row of the sample's level
  A *dx, *dy;             // distance from the corner (y0, x0)
  A* corner[4];           // bilinear factor, 0 where the sample lies outside
  uint32_t* offset[4];    // of the corner's row, in elements; `outside` where it lies beyond the map
  char* memory;

  explicit Block(int64_t samples) {
    capacity = (samples + 15) / 16 * 16;
    memory = (char*)__builtin_malloc(capacity * (11 * sizeof(A) + 5 * 4) + 64);
    char* p = (char*)(((uintptr_t)memory + 63) / 64 * 64);
    location = take<A>(p, 2);
    A** arrays[] = {&weight, &width, &height, &dx, &dy, corner, corner + 1, corner + 2, corner + 3};
    for (A** array : arrays) *array = take<A>(p, 1);
    for (int c = 0; c < 4; c++) offset[c] = take<uint32_t>(p, 1);
    start = take<int32_t>(p, 1);
    for (int64_t i = 0; i < capacity; i++)
      location[2 * i] = location[2 * i + 1] = -2, weight[i] = 0, width[i] = height[i] = 1, start[i] = 0;
  }
  Block(const Block&) = delete;
  ~Block() { __builtin_free(memory); }

  template <class T>
  T* take(char*& p, int64_t times) {
    T* array = (T*)p;
    p += capacity * times * sizeof(T);
    return array;
  }

  void set_level(int64_t i, const Shape& s, int64_t l, int64_t first_row) {
    width[i] = A(s.widths[l]);
    height[i] = A(s.heights[l]);
    start[i] = int32_t(first_row);
  }

  // Copies `count` samples in, the first to position `at`.
  void read(int64_t at, int64_t count, const void* locations, const void* weights, Kind kind, int64_t from) {
    if (kind == (sizeof(A) == 8 ? Kind::f64 : Kind::f32)) {
      __builtin_memcpy(location + 2 * at, (const A*)locations + 2 * from, 2 * count * sizeof(A));
      __builtin_memcpy(weight + at, (const A*)weights + from, count * sizeof(A));
    } else {
      for (int64_t k = 0; k < 2 * count; k++) location[2 * at + k] = read_as<A>(locations, kind, 2 * from + k);
      for (int64_t k = 0; k < count; k++) weight[at + k] = read_as<A>(weights, kind, from + k);
    }
  }

  // Copies what took the place of `location` and `weight` out again.
  void write(int64_t at, int64_t count, void* locations, void* weights, Kind kind, int64_t to) {
    if (kind == (sizeof(A) == 8 ? Kind::f64 : Kind::f32)) {
      __builtin_memcpy((A*)locations + 2 * to, location + 2 * at, 2 * count * sizeof(A));
      __builtin_memcpy((A*)weights + to, weight + at, count * sizeof(A));
    } else {
      for (int64_t k = 0; k < 2 * count; k++) write_as(locations, kind, 2 * to + k, location[2 * at + k]);
      for (int64_t k = 0; k < count; k++) write_as(weights, kind, to + k, weight[at + k]);
    }
  }

  // Asks for what `read` will want later: one head's coordinates lie far apart, beyond the hardware's guess.
  static void prefetch(int64_t count, const void* locations, const void* weights, Kind kind, int64_t from) {
    const int64_t size = kind == Kind::f64 ? 8 : (kind == Kind::f32 ? 4 : 2);
    const char *l = (const char*)locations + 2 * from * size, *w = (const char*)weights + from * size;
    for (int64_t i = 0; i < 2 * count * size; i += 64) __builtin_prefetch(l + i);
    for (int64_t i = 0; i < count * size; i += 64) __builtin_prefetch(w + i);
  }

  // Fills dx, dy, corner (times the weight if kWeighted) and offset for the first `count` samples, rounded up.
  template <bool kWeighted>
  void locate(int64_t count, uint32_t stride, uint32_t outside);
};

template <class A>
template <bool kWeighted>
void Block<A>::locate(int64_t count, uint32_t stride, uint32_t outside) {
  constexpr int lanes = kLanes<A>;
  typedef int32_t Ints __attribute__((vector_size(4 * lanes)));
  typedef decltype(Vec<A>{} < Vec<A>{}) Mask;
  const Ints step = Ints{} + int32_t(stride), beyond = Ints{} + int32_t(outside);
  for (int64_t i = 0; i < count; i += lanes) {
    const Vec<A> w = load(width + i), h = load(height + i);
    const Vec<A> even = load(location + 2 * i), odd = load(location + 2 * i + lanes);
    Vec<A> x = evens(even, odd) * w - A(0.5), y = odds(even, odd) * h - A(0.5);
    const Mask in = (x > A(-1)) & (y > A(-1)) & (x < w) & (y < h);  // false for NaN
    x = (Vec<A>)((Mask)x & in);
    y = (Vec<A>)((Mask)y & in);
    Ints x0 = __builtin_convertvector(x, Ints), y0 = __builtin_convertvector(y, Ints);
    x0 += __builtin_convertvector(x < __builtin_convertvector(x0, Vec<A>), Ints);  // floor: a true lane is -1
    y0 += __builtin_convertvector(y < __builtin_convertvector(y0, Vec<A>), Ints);
    const Vec<A> rx = x - __builtin_convertvector(x0, Vec<A>), ry = y - __builtin_convertvector(y0, Vec<A>);
    const Vec<A> whole = (Vec<A>)((Mask)(kWeighted ? load(weight + i) : splat<A>(1)) & in);
    const Vec<A> lower = ry * whole, upper = (A(1) - ry) * whole;
    store(dx + i, rx);
    store(dy + i, ry);
    store(corner[0] + i, upper * (A(1) - rx));
    store(corner[1] + i, upper * rx);
    store(corner[2] + i, lower * (A(1) - rx));
    store(corner[3] + i, lower * rx);
    const Ints inside = __builtin_convertvector(in, Ints), columns = __builtin_convertvector(w, Ints);
    const Ints left = inside & (x0 >= 0), right = inside & (x0 + 1 < columns);
    const Ints top = y0 >= 0, bottom = y0 + 1 < __builtin_convertvector(h, Ints);
    Ints first;
    __builtin_memcpy(&first, start + i, sizeof first);
    const Ints at = (first + y0 * columns + x0) * step, below = at + columns * step;
    const Ints rows[4] = {at, at + step, below, below + step};
    const Ints valid[4] = {top & left, top & right, bottom & left, bottom & right};
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
      const Ints chosen = (rows[c] & valid[c]) | (beyond & ~valid[c]);
      __builtin_memcpy(offset[c] + i, &chosen, sizeof chosen);
    }
  }
}
