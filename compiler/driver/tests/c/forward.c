/* Calls a library from C: prints what it has, takes weights from a file, sets one of them, runs `forward` twice, and prints the logits.
 * tiny.h is what `lode build` wrote for the model of the test; see ../bindings.rs. */
#include "tiny.h"
#include <stdio.h>
#include <string.h>

#define CHECK(call)                                             \
  do {                                                          \
    int32_t status = (call);                                    \
    if (status != 0) {                                          \
      fprintf(stderr, "%s: %d %s\n", #call, status, lode_error()); \
      return 1;                                                 \
    }                                                           \
  } while (0)

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  lode_library *library = lode_open(argv[1], 2);
  if (library == NULL) {
    fprintf(stderr, "%s\n", lode_error());
    return 1;
  }
  for (int64_t i = 0; lode_entry(library, i) != NULL; i++) printf("entry %s\n", lode_entry(library, i));
  lode_port port;
  for (int64_t i = 0; lode_describe(library, NULL, i, &port) == 0; i++)
    printf("param %s %d [%s]\n", port.name, port.role == LODE_PARAM ? port.dtype : -1, port.shape);
  for (int64_t i = 0; lode_describe(library, "forward", i, &port) == 0; i++)
    if (port.role == LODE_INPUT || port.role == LODE_RESULT) printf("port %s %d %d [%s]\n", port.name, port.dtype, port.is_output, port.shape);

  CHECK(lode_load(library, argv[2]));
  /* The row of layer 1 alone, as ones; bits and all else stay. */
  const float ones[4] = {1, 1, 1, 1};
  const int64_t extent[1] = {4};
  lode_tensor scale = {"layers.1.scale", LODE_F32, 1, extent, ones};
  CHECK(lode_set(library, LODE_PARAM, &scale));
  lode_tensor stacked;
  CHECK(lode_get(library, LODE_PARAM, "layers.*.scale", &stacked));
  if (stacked.rank != 2 || stacked.shape[0] != 2 || memcmp((const float *)stacked.data + 4, ones, sizeof ones) != 0) return 3;

  /* Wrong calls tell what is wrong. */
  const int32_t tokens[6] = {1, 2, 3, 4, 5, 0};
  const float *logits = NULL;
  const int64_t three[1] = {3};
  scale.shape = three;
  int32_t status = lode_set(library, LODE_PARAM, &scale);
  printf("status %d %s\n", status, lode_error());
  status = lode_run(library, "backward", NULL, 0);
  printf("status %d %s\n", status, lode_error());
  status = lode_get(library, LODE_RESULT, "output", &stacked);
  printf("status %d %s\n", status, lode_error());

  for (int64_t rows = 1; rows <= 2; rows++) {
    CHECK(tiny_forward(library, rows, 3, tokens, &logits));
    printf("logits");
    for (int64_t i = 0; i < rows * 3 * 6; i++) printf(" %.9g", (double)logits[i]);
    printf("\n");
  }
  lode_close(library);
  return 0;
}
