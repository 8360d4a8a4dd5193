/*
 * log: one line a message to standard error, as nginx writes them.  Owns the
 * level; never opens files.  Any thread; not for signal handlers.
 */
#ifndef GLM_LOG_H
#define GLM_LOG_H

typedef enum {
    GLM_LOG_ERR,              /* ours to repair */
    GLM_LOG_WARN,
    GLM_LOG_NOTICE,           /* default */
    GLM_LOG_INFO,             /* a client's doing */
    GLM_LOG_DEBUG
} glm_log_level_t;

/* 0, or GLM_EINVAL for a name that is none of error, warn, notice, info, debug. */
int glm_log_level(const char *name);

/* Lower case, no full stop, no newline; control characters come out as '?'. */
__attribute__((format(printf, 2, 3)))
void glm_log(glm_log_level_t level, const char *fmt, ...);

#endif
