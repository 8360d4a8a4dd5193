/*
 * archive: tar headers of all forms, files beyond 8 GiB, and parts.  What would break:
 * a checkpoint that cannot be found in its archive, or bytes that are not its own.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../tools/convert/parts.h"
#include "../../tools/convert/tar.h"
#include "tap.h"

#define BIG  (9ull << 30)

static char  top[] = "/tmp/glm-archive.XXXXXX";


static const char *
in_top(const char *name)
{
    static char  path[4][128];
    static int   turn;

    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof(path[turn]), "%s/%s", top, name);
    return path[turn];
}


static void
seal(uint8_t *b)
{
    int  sum = 0, i;

    memset(b + 148, ' ', 8);
    for (i = 0; i < 512; i++) sum += b[i];
    snprintf((char *) b + 148, 8, "%06o", sum);
}


static void
header(uint8_t *b, const char *name, char type, uint64_t size)
{
    int  i;

    memset(b, 0, 512);
    strncpy((char *) b, name, 100);
    if (size >> 33) {
        b[124] = 0x80;
        for (i = 0; i < 8; i++) b[135 - i] = (uint8_t) (size >> (8 * i));

    } else {
        snprintf((char *) b + 124, 12, "%011llo", (unsigned long long) size);
    }
    b[156] = (uint8_t) type;
    memcpy(b + 257, "ustar\0" "00", 8);
    seal(b);
}


static void
put(int fd, uint64_t *at, const void *bytes, uint64_t n, uint64_t room)
{
    if (bytes != NULL && pwrite(fd, bytes, (size_t) n, (off_t) *at) != (ssize_t) n) {
        bail_out("cannot write a test file");
    }
    *at += (room + 511) / 512 * 512;
}


/* An archive with every kind of header; its large files are holes. */
static void
write_archive(const char *path)
{
    static const char  pax[] = "27 path=folder/pax-%-a.pt \n19 size=9663676416\n14 comment=x \n";
    uint8_t            b[512];
    char               name[180];
    uint64_t           at = 0;
    int                fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    if (fd < 0) bail_out("cannot write a test file");
    header(b, "folder/", '5', 0);
    put(fd, &at, b, 512, 512);
    header(b, "folder/latest", '0', 6);
    put(fd, &at, b, 512, 512);
    put(fd, &at, "49300\n", 6, 6);
    header(b, "folder/big", '0', BIG);
    put(fd, &at, b, 512, 512);
    put(fd, &at, NULL, 0, BIG);
    header(b, "PaxHeaders/x", 'x', sizeof(pax) - 1);
    put(fd, &at, b, 512, 512);
    put(fd, &at, pax, sizeof(pax) - 1, sizeof(pax) - 1);
    header(b, "short", '0', 0);
    put(fd, &at, b, 512, 512);
    put(fd, &at, NULL, 0, BIG);
    memset(name, 'n', sizeof(name));
    header(b, "././@LongLink", 'L', sizeof(name));
    put(fd, &at, b, 512, 512);
    put(fd, &at, name, sizeof(name), sizeof(name));
    header(b, "cut", '0', 3);
    put(fd, &at, b, 512, 512);
    put(fd, &at, "abc", 3, 3);
    header(b, "link", '2', 0);
    put(fd, &at, b, 512, 512);
    header(b, "last", '0', 4);
    memcpy(b + 345, "prefix/of", 9);
    seal(b);
    put(fd, &at, b, 512, 512);
    put(fd, &at, "last", 4, 4);
    if (ftruncate(fd, (off_t) at + 1024) != 0) bail_out("no file with a hole");
    close(fd);
}


static vol_t *
open_one(const char *path)
{
    char   *p = (char *) path;
    vol_t  *v = NULL;

    if (vol_open(&v, &p, 1, NULL) != 0) bail_out("cannot open a test file");
    return v;
}


static void
test_headers(void)
{
    const char  *path = in_top("a.tar");
    char         name[181], text[8] = "";
    glm_err_t    err = { "" };
    tar_t        t;
    vol_t       *v;

    write_archive(path);
    v = open_one(path);
    if (!ok(tar_list(&t, v, &err) == 0 && t.n == 5, "five plain files %s", err.text)) return;
    ok(strcmp(t.file[0].name, "folder/latest") == 0 && t.file[0].size == 6
       && vol_read(v, text, 6, t.file[0].at, &err) == 0 && strcmp(text, "49300\n") == 0, "the first");
    ok(strcmp(t.file[1].name, "folder/big") == 0 && t.file[1].size == BIG, "a size in base 256");
    ok(strcmp(t.file[2].name, "folder/pax-%-a.pt ") == 0 && t.file[2].size == BIG, "name and size of pax");
    memset(name, 'n', 180);
    name[180] = '\0';
    ok(strcmp(t.file[3].name, name) == 0 && t.file[3].size == 3
       && vol_read(v, text, 3, t.file[3].at, &err) == 0 && memcmp(text, "abc", 3) == 0, "a long name of GNU tar");
    ok(strcmp(t.file[4].name, "prefix/of/last") == 0
       && vol_read(v, text, 4, t.file[4].at, &err) == 0 && memcmp(text, "last", 4) == 0, "a prefix of ustar");
    tar_free(&t);
    vol_close(v);
    unlink(path);
}


/* Changed headers are refused or read as something; nothing worse happens. */
static void
test_damage(void)
{
    uint8_t    b[512 * 6], bad[512 * 6];
    int        fd, refused = 0, i;
    tar_t      t;
    vol_t     *v;

    header(b, "PaxHeaders/x", 'x', 30);
    memset(b + 512, 0, 512);
    memcpy(b + 512, "19 path=folder/abc\n11 size=12\n", 30);
    header(b + 1024, "x", '0', 12);
    memset(b + 1536, 0, 512);
    header(b + 2048, "y", '0', 0);
    memset(b + 2560, 0, 512);
    for (i = 0; i < 2000; i++) {
        memcpy(bad, b, sizeof(b));
        bad[i * 7919 % 2600] ^= (uint8_t) (1 << i % 8);
        if (i % 2) seal(bad + (i % 3) * 1024);           /* as if it were meant so */
        fd = open(in_top("bad.tar"), O_WRONLY | O_CREAT | O_TRUNC, 0600);
        if (fd < 0 || write(fd, bad, sizeof(bad)) != sizeof(bad)) bail_out("cannot write a test file");
        close(fd);
        v = open_one(in_top("bad.tar"));
        refused += tar_list(&t, v, NULL) != 0;
        tar_free(&t);
        vol_close(v);
    }
    ok(refused > 1000, "%d of 2000 changed archives are refused", refused);
    unlink(in_top("bad.tar"));
}


static void
touch(const char *name, size_t size)
{
    int  fd = open(in_top(name), O_WRONLY | O_CREAT | O_TRUNC, 0600);

    if (fd < 0 || ftruncate(fd, (off_t) size) != 0) bail_out("cannot write a test file");
    close(fd);
}


static void
test_parts(void)
{
    glm_err_t   err = { "" };
    cv_parts_t  p;
    char        name[32];
    int         i;

    ok(cv_parts_find(&p, top, &err) == GLM_ENOENT && err.text[0] == '\0', "no archive, no message");
    for (i = 1; i < 13; i++) {
        snprintf(name, sizeof(name), "g.tar.part_%02d", i);
        touch(name, i < 12 ? 100 : 1);
    }
    ok(cv_parts_find(&p, top, &err) == 0 && p.n == 12 && strstr(p.path[11], "part_12"),
       "parts from 01 on %s", err.text);
    cv_parts_free(&p);
    unlink(in_top("g.tar.part_10"));
    ok(cv_parts_find(&p, in_top("g.tar.part_03"), &err) == GLM_ENOENT
       && strstr(err.text, "g.tar.part_10: missing, but g.tar.part_11"), "%s", err.text);
    err.text[0] = '\0';
    touch("g.tar.part_10", 99);
    ok(cv_parts_find(&p, top, &err) == GLM_EFORMAT
       && strstr(err.text, "part_10, byte 99: the part ends"), "%s", err.text);
    err.text[0] = '\0';
    touch("g.tar.part_x0", 100);
    ok(cv_parts_find(&p, top, &err) < 0 && strstr(err.text, "part_13: missing"), "%s", err.text);
    for (i = 1; i < 13; i++) {
        snprintf(name, sizeof(name), "g.tar.part_%02d", i);
        unlink(in_top(name));
    }
    unlink(in_top("g.tar.part_x0"));
    err.text[0] = '\0';
    touch("h.tar.part_ay", 10);
    touch("h.tar.part_az", 10);
    touch("h.tar.part_ba", 10);
    ok(cv_parts_find(&p, in_top("h.tar.part_ba"), &err) == GLM_ENOENT && strstr(err.text, "part_ay: is the first"),
       "%s", err.text);
    unlink(in_top("h.tar.part_ay"));
    unlink(in_top("h.tar.part_az"));
    unlink(in_top("h.tar.part_ba"));
}


/* A read over the ends of several files, one of them empty. */
static void
test_volume(void)
{
    char        text[16] = "", place[200];
    const char *names[] = { "v0", "v1", "v2", "v3" }, *parts[] = { "abc", "", "defgh", "i" };
    char       *paths[4];
    glm_err_t   err = { "" };
    vol_t      *v;
    int         i, fd;

    for (i = 0; i < 4; i++) {
        paths[i] = strdup(in_top(names[i]));
        fd = open(paths[i], O_WRONLY | O_CREAT | O_TRUNC, 0600);
        if (fd < 0 || write(fd, parts[i], strlen(parts[i])) < 0) bail_out("cannot write a test file");
        close(fd);
    }
    ok(vol_open(&v, paths, 4, &err) == 0 && vol_size(v) == 9, "four files %s", err.text);
    ok(vol_read(v, text, 9, 0, &err) == 0 && strcmp(text, "abcdefghi") == 0, "read as one");
    ok(strstr(vol_place(v, 3, place, sizeof(place)), "/v2, byte 0") != NULL, "%s", place);
    ok(strstr(vol_place(v, 9, place, sizeof(place)), "/v3, byte 1") != NULL, "%s", place);
    ok(vol_read(v, text, 3, 7, &err) == GLM_EFORMAT && strstr(err.text, "/v3, byte 1: cut short"), "%s", err.text);
    vol_close(v);
    for (i = 0; i < 4; i++) {
        unlink(paths[i]);
        free(paths[i]);
    }
}


int
main(void)
{
    if (mkdtemp(top) == NULL) bail_out("mkdtemp() failed");
    test_parts();
    test_volume();
    test_damage();
    test_headers();
    rmdir(top);
    return tap_done();
}
