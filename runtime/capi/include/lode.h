/* The C interface of Lode's run-time: opens a library that `lode build` made and calls its entries. Link with -llode_runtime.
 *
 * A call that returns int32_t gives 0, or the number of an error: 704 is E0704, which `lode explain E0704` explains; LODE_USAGE is a
 * null pointer or a number out of range where none may be. lode_error tells the last error of the calling thread in words.
 *
 * A library may be used from any thread, by one at a time. Names and texts are UTF-8. Tensors are dense and row-major. */
#ifndef LODE_H
#define LODE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Dtypes of elements. bf16, f16 and e4m3 are given by their bits, a bool is a byte of 0 or 1, tf32 is f32. */
enum { LODE_F64, LODE_F32, LODE_BF16, LODE_F16, LODE_E4M3, LODE_I64, LODE_I32, LODE_BOOL, LODE_TF32 };

/* What a tensor is to an entry. The library keeps those of the first five roles from call to call. */
enum { LODE_PARAM, LODE_STATE, LODE_GRAD, LODE_MOMENT, LODE_TALLY, LODE_INPUT, LODE_SCALAR, LODE_RESULT };

/* Errors that have no page: a wrong call, and a bug of ours. */
enum { LODE_USAGE = 2, LODE_BUG = 101 };

typedef struct lode_library lode_library;

/* A tensor: `rank` extents at `shape`, the elements at `data`. */
typedef struct {
  const char *name;
  int32_t dtype;
  int32_t rank;
  const int64_t *shape;
  const void *data;
} lode_tensor;

/* What an entry takes or gives. `shape` is text, such as "B, T, 256"; it lives as long as the library. */
typedef struct {
  const char *name;
  int32_t role;
  int32_t dtype;
  int32_t is_output;
  const char *shape;
} lode_port;

/* The last error of this thread, or "". It lives until the thread's next call. */
const char *lode_error(void);

/* Opens the library at `path` (x.lodelib, with libx.so beside it), to run on `threads` threads, 0 for one a core. Null on an error.
 * Parameters and states are zeros until they are set. */
lode_library *lode_open(const char *path, int32_t threads);
/* Frees the library and all it gave. Null is fine. */
void lode_close(lode_library *library);

/* Draws parameters and states as the model declares them. */
int32_t lode_initialise(lode_library *library, uint64_t seed);
/* Takes parameters and states from a safetensors file. */
int32_t lode_load(lode_library *library, const char *path);

/* The name of entry `index`, or null past the last; it lives as long as the library. */
const char *lode_entry(const lode_library *library, int64_t index);
/* The port `index` of an entry, inputs first; with a null entry, the parameter or state `index`. LODE_USAGE past the last. */
int32_t lode_describe(const lode_library *library, const char *entry, int64_t index, lode_port *port);

/* Sets a parameter or state to a copy of the tensor, rounding floats to its dtype. Its name is `tensor->name`: that of the model with
 * all layers stacked (layers.*.wq), or of one tensor in a weight file (layers.0.wq). */
int32_t lode_set(lode_library *library, int32_t role, const lode_tensor *tensor);
/* Gives a tensor of the library, or a result of the last lode_run (role LODE_RESULT). `data` lives until the next lode_run, `name` and
 * `shape` until the next lode_get. */
int32_t lode_get(lode_library *library, int32_t role, const char *name, lode_tensor *tensor);
/* Zeros all tensors of a role, as gradients and tallies have to be before the first lode_run of `grad` in a step. */
int32_t lode_zero(lode_library *library, int32_t role);

/* Runs an entry on `count` inputs and scalars. Run-time dims follow from their shapes. */
int32_t lode_run(lode_library *library, const char *entry, const lode_tensor *inputs, int64_t count);

/* For headers of libraries: floor(a / n) with n > 0, the smaller, the larger. */
static inline int64_t lode_floor_div(int64_t a, int64_t n) { return a / n - (a % n < 0); }
static inline int64_t lode_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t lode_max(int64_t a, int64_t b) { return a > b ? a : b; }

#ifdef __cplusplus
}
#endif

#endif
