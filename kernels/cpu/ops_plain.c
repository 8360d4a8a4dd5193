/* ops_plain: the operations in plain C, for any machine and as the oracle. */
#include "vec_plain.h"
#include "ops_body.h"
#include "ops.h"

const glm_ops_t  glm_ops_plain = OPS_TABLE;
