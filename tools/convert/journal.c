/*
 * journal: text; the identity, a line "--", then "CRC NAME" for each tensor.  A
 * last line that a kill cut off counts for nothing.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "journal.h"

#define CV_MAX_JOURNAL  (16u << 20)     /* bytes */
#define CV_END          "--\n"

typedef struct {
    char      name[128];
    uint32_t  crc;
} cv_mark_t;

struct cv_journal_s {
    cv_out_t   *out;
    int         fd;
    cv_mark_t  *mark;
    size_t      n;
};


static int
cv_journal_errno(const cv_journal_t *j, const char *call, glm_err_t *err)
{
    return glm_fail(err, GLM_EIO, "%s/" CV_JOURNAL ".tmp: %s failed: %s", cv_out_dir(j->out), call,
                    strerror(errno));
}


/* All that is in the file; the caller's. */
static int
cv_journal_text(const cv_journal_t *j, char **text, glm_err_t *err)
{
    off_t    size = lseek(j->fd, 0, SEEK_END);
    ssize_t  got;

    *text = NULL;
    if (size < 0) return cv_journal_errno(j, "lseek()", err);
    if (size > CV_MAX_JOURNAL) size = 0;        /* no journal of ours */
    *text = calloc(1, (size_t) size + 1);
    if (*text == NULL) return glm_fail(err, GLM_ENOMEM, "no memory for the journal");
    got = pread(j->fd, *text, (size_t) size, 0);
    return got == size ? 0 : cv_journal_errno(j, "read()", err);
}


static int
cv_journal_add(cv_journal_t *j, const char *name, uint32_t crc, glm_err_t *err)
{
    void  *more = reallocarray(j->mark, j->n + 1, sizeof(*j->mark));

    if (more == NULL) return glm_fail(err, GLM_ENOMEM, "no memory for the journal");
    j->mark = more;
    snprintf(j->mark[j->n].name, sizeof(j->mark[j->n].name), "%s", name);
    j->mark[j->n++].crc = crc;
    return 0;
}


/* The marks; what follows the last whole line is cut off. */
static int
cv_journal_marks(cv_journal_t *j, const char *text, const char *marks, glm_err_t *err)
{
    const char    *p = marks, *end;
    char           name[128];
    unsigned int   crc;
    int            rc;

    for ( ; (end = strchr(p, '\n')) != NULL; p = end + 1) {
        if (sscanf(p, "%8x %127s", &crc, name) != 2) break;
        if ((rc = cv_journal_add(j, name, crc, err)) != 0) return rc;
    }
    if (ftruncate(j->fd, p - text) != 0) return cv_journal_errno(j, "ftruncate()", err);
    return 0;
}


/* The first line of one that is not in the other. */
static void
cv_journal_differs(const char *was, const char *is, char *out, size_t size)
{
    while (*was == *is && *was != '\0') {
        was++;
        is++;
    }
    while (was[-1] != '\n') {
        was--;
        is--;
    }
    snprintf(out, size, "\"%.*s\", now \"%.*s\"", (int) strcspn(was, "\n"), was,
             (int) strcspn(is, "\n"), is);
}


static int
cv_journal_begin(cv_journal_t *j, const char *identity, glm_err_t *err)
{
    int  rc = cv_out_clear(j->out, err);

    if (rc != 0) return rc;
    if (j->fd >= 0) close(j->fd);
    j->fd = cv_out_left(j->out, CV_JOURNAL, O_RDWR | O_CREAT | O_EXCL);
    if (j->fd < 0) return cv_journal_errno(j, "open()", err);
    if (dprintf(j->fd, "%s" CV_END, identity) < 0) return cv_journal_errno(j, "write()", err);
    return fsync(j->fd) == 0 ? 0 : cv_journal_errno(j, "fsync()", err);
}


static int
cv_journal_enter(cv_journal_t *j, const char *identity, int replace, glm_err_t *err)
{
    char    *text = NULL, *end, differs[300];
    size_t   len = strlen(identity);
    int      rc;

    j->fd = cv_out_left(j->out, CV_JOURNAL, O_RDWR);
    if (j->fd < 0 && errno != ENOENT) return cv_journal_errno(j, "open()", err);
    if (j->fd < 0) return cv_journal_begin(j, identity, err);
    if ((rc = cv_journal_text(j, &text, err)) == 0) {
        end = strstr(text, "\n" CV_END);
        if (end == NULL || (replace && strncmp(text, identity, len) != 0)) {
            rc = cv_journal_begin(j, identity, err);

        } else if (strncmp(text, identity, len) == 0 && end + 1 == text + len) {
            rc = cv_journal_marks(j, text, end + 1 + strlen(CV_END), err);

        } else {
            cv_journal_differs(text, identity, differs, sizeof(differs));
            rc = glm_fail(err, GLM_EBUSY, "%s: holds an unfinished conversion with other input or "
                          "options (%s); the same command goes on, --force begins anew",
                          cv_out_dir(j->out), differs);
        }
    }
    free(text);
    return rc;
}


int
cv_journal_open(cv_journal_t **out, cv_out_t *o, const char *identity, int replace, glm_err_t *err)
{
    cv_journal_t  *j = calloc(1, sizeof(*j));
    int            rc;

    *out = NULL;
    if (j == NULL) return glm_fail(err, GLM_ENOMEM, "no memory for the journal");
    j->out = o;
    if ((rc = cv_journal_enter(j, identity, replace, err)) != 0) {
        cv_journal_close(j);
        return rc;
    }
    *out = j;
    return 0;
}


void
cv_journal_close(cv_journal_t *j)
{
    if (j == NULL) return;
    if (j->fd >= 0) close(j->fd);
    free(j->mark);
    free(j);
}


int
cv_journal_find(const cv_journal_t *j, const char *name, uint32_t *crc)
{
    size_t  i;

    for (i = 0; i < j->n; i++) {
        if (strcmp(j->mark[i].name, name) != 0) continue;
        *crc = j->mark[i].crc;
        return 1;
    }
    return 0;
}


size_t
cv_journal_count(const cv_journal_t *j)
{
    return j->n;
}


int
cv_journal_mark(cv_journal_t *j, const char *name, uint32_t crc, glm_err_t *err)
{
    if (lseek(j->fd, 0, SEEK_END) < 0 || dprintf(j->fd, "%08x %s\n", crc, name) < 0) {
        return cv_journal_errno(j, "write()", err);
    }
    return cv_journal_add(j, name, crc, err);
}
