/*
 * error: result codes of the engine, the kernels and the tools, and the one
 * line in which a failure is told.  A function returns 0 or a negative code;
 * where it can say more it fills a glm_err_t that the caller owns.  Only
 * main() ends the process.
 */
#ifndef GLM_ERROR_H
#define GLM_ERROR_H

#include <stdarg.h>
#include <stdio.h>

#define GLM_EINVAL   (-1)     /* an argument or input is wrong */
#define GLM_ENOMEM   (-2)
#define GLM_EIO      (-3)     /* a system call failed; text names it */
#define GLM_EFORMAT  (-4)     /* a file is not what it should be */
#define GLM_ENOENT   (-5)     /* a file or tensor is missing */
#define GLM_ELIMIT   (-6)     /* larger than a stated limit */
#define GLM_EBUSY    (-7)     /* no room now; later may succeed */
#define GLM_EGPU     (-8)     /* a CUDA error after which the card is unusable */
#define GLM_ECANCEL  (-9)
#define GLM_ELOST    (-10)    /* the card is gone */
#define GLM_ETIMEOUT (-11)    /* a kernel did not end */
#define GLM_ENAN     (-12)    /* the card computed NaN or infinity */

typedef struct {
    char  text[512];          /* one line, no newline, "" until set */
} glm_err_t;

/*
 * Writes the text of err unless one is there already (the first error is the
 * cause), and returns rc.  err may be NULL.
 */
__attribute__((format(printf, 3, 4)))
static inline int
glm_fail(glm_err_t *err, int rc, const char *fmt, ...)
{
    va_list  ap;

    if (err != NULL && err->text[0] == '\0') {
        va_start(ap, fmt);
        vsnprintf(err->text, sizeof(err->text), fmt, ap);
        va_end(ap);
    }
    return rc;
}

#endif
