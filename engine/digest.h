/*
 * digest: what the one pass over all values finds, whoever reads them: their hash,
 * their checksums where the files have them, and scales that cannot be.  Rows come
 * in any order and from any thread, each once; what comes out depends on neither.
 */
#ifndef GLM_DIGEST_H
#define GLM_DIGEST_H

#include "loader.h"

typedef struct glm_digest_s  glm_digest_t;

/* l must outlive it. */
int glm_digest_new(glm_digest_t **out, const glm_loader_t *l, glm_err_t *err);
void glm_digest_free(glm_digest_t *d);          /* NULL is fine */

/*
 * Rows row .. row + n - 1 of tensor number i (glm_tensor_t.index) as the files have
 * them, and of its scales, NULL where there are none.  A vector comes whole.  An
 * error names the tensor and row of a scale that is not finite, is negative, or is 0
 * where what it scales is not.
 */
int glm_digest_rows(glm_digest_t *d, int i, int32_t row, int32_t n, const void *data,
    const void *scale, glm_err_t *err);

/* All of them, from the mapped files, on all cores.  Dummy weights have none. */
int glm_digest_mapped(glm_digest_t *d, glm_err_t *err);

/*
 * In out, a hash of the sizes in config.json, of all weights and of how they are
 * stored (dummy: of that word in place of the values).  An error names file and
 * tensor: another checksum than the file has, or rows that were not given.
 */
int glm_digest_end(const glm_digest_t *d, uint64_t *out, glm_err_t *err);

#endif
