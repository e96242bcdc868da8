/* SPDX-License-Identifier: Apache-2.0 */
/* System calls one after the other, as the arguments say; probe.py builds it, calls it and reads what it prints.
 *
 *     probe open f notes rw,creat 0600 -- write f hello -- pread f 0 5
 *
 * Steps are separated by "--".  Each prints one line: "ok", "= NUMBER", ": BYTES" in hexadecimal, ", NAME NAME ..." in
 * hexadecimal, or "! ENAME" where the call failed; the next step is done in any case.  Files and mappings have labels,
 * which belong to the process.  "? WORD" asks whoever started us to do something and to answer with a line.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

enum { LABELS = 64, ROOM = 1 << 20, WORDS = 8 };

static _Alignas(8) char room[ROOM]; /* what a step read */
static char *words[WORDS];          /* the step's arguments; missing ones are "" */

struct label {
    const char *name;
    int fd;
    char *map;
    size_t size;
};
static struct label labels[LABELS];

static void usage(const char *what, const char *word)
{
    fprintf(stderr, "probe: %s: %s\n", what, word);
    exit(64);
}

static struct label *label(const char *name)
{
    for (int i = 0; i < LABELS; i++) {
        if (!labels[i].name) {
            labels[i] = (struct label){name, -1, NULL, 0};
            return &labels[i];
        }
        if (!strcmp(labels[i].name, name))
            return &labels[i];
    }
    usage("too many labels", name);
    return NULL;
}

static int fd(int word) { return label(words[word])->fd; }
static long long number(int word) { return strtoll(words[word], NULL, 0); }

/* Words that stand for bits, several of them joined by commas. */

struct bit {
    const char *name;
    long value;
};

static const struct bit open_flags[] = {
    {"r", O_RDONLY}, {"w", O_WRONLY}, {"rw", O_RDWR}, {"creat", O_CREAT}, {"excl", O_EXCL}, {"trunc", O_TRUNC},
    {"append", O_APPEND}, {"tmpfile", O_TMPFILE}, {"directory", O_DIRECTORY}, {"nofollow", O_NOFOLLOW},
    {"sync", O_SYNC}, {"nonblock", O_NONBLOCK}, {NULL, 0}};
static const struct bit rename_flags[] = {{"noreplace", 1}, {"exchange", 2}, {NULL, 0}}; /* linux/fs.h */
static const struct bit fallocate_modes[] = {{"keep", 1}, {"punch", 2}, {"zero", 16}, {NULL, 0}}; /* linux/falloc.h */
static const struct bit whences[] = {
    {"set", SEEK_SET}, {"end", SEEK_END}, {"data", SEEK_DATA}, {"hole", SEEK_HOLE}, {NULL, 0}};
static const struct bit protections[] = {{"r", PROT_READ}, {"rw", PROT_READ | PROT_WRITE}, {NULL, 0}};
static const struct bit xattr_flags[] = {{"create", XATTR_CREATE}, {"replace", XATTR_REPLACE}, {NULL, 0}};

static const struct bit flock_operations[] = {
    {"shared", LOCK_SH}, {"exclusive", LOCK_EX}, {"none", LOCK_UN}, {"nonblock", LOCK_NB}, {NULL, 0}};
static const struct bit lock_commands[] = {{"posix", F_SETLK}, {"posix-wait", F_SETLKW}, {"ofd", F_OFD_SETLK},
                                           {"ofd-wait", F_OFD_SETLKW}, {NULL, 0}};
static const struct bit lock_types[] = {{"shared", F_RDLCK}, {"exclusive", F_WRLCK}, {"none", F_UNLCK}, {NULL, 0}};

static long bits(const struct bit *table, int word)
{
    char copy[256];
    long all = 0;
    snprintf(copy, sizeof copy, "%s", words[word]);
    for (char *name = strtok(copy, ","); name; name = strtok(NULL, ",")) {
        const struct bit *bit = table;
        while (bit->name && strcmp(bit->name, name))
            bit++;
        if (!bit->name)
            usage("no such flag", name);
        all |= bit->value;
    }
    return all;
}

/* Open files. */

static long do_open(void)
{
    int got = open(words[2], bits(open_flags, 3) | O_CLOEXEC, *words[4] ? (mode_t)strtol(words[4], NULL, 8) : 0666);
    if (got < 0)
        return -1;
    label(words[1])->fd = got;
    return 0;
}
static long do_close(void) { return close(fd(1)); }
static long do_read(void) { return read(fd(1), room, number(2)); }
static long do_pread(void) { return pread(fd(1), room, number(3), number(2)); }
static long do_write(void) { return write(fd(1), words[2], strlen(words[2])); }
static long do_pwrite(void) { return pwrite(fd(1), words[3], strlen(words[3]), number(2)); }
static long do_seek(void) { return lseek(fd(1), number(2), bits(whences, 3)); }
static long do_ftruncate(void) { return ftruncate(fd(1), number(2)); }
static long do_fallocate(void) { return fallocate(fd(1), bits(fallocate_modes, 2), number(3), number(4)); }
static long do_fsync(void) { return fsync(fd(1)); }
static long do_syncfs(void) { return syncfs(fd(1)); }
static long do_fstat_size(void)
{
    struct stat status;
    return fstat(fd(1), &status) ? -1 : status.st_size;
}
static long do_fstat_links(void)
{
    struct stat status;
    return fstat(fd(1), &status) ? -1 : (long)status.st_nlink;
}
static long do_copy(void)
{
    loff_t from = number(2), to = number(4);
    return copy_file_range(fd(1), &from, fd(3), &to, number(5), 0);
}
static long do_name(void)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd(1));
    return linkat(AT_FDCWD, path, AT_FDCWD, words[2], AT_SYMLINK_FOLLOW);
}

/* Locks: of the open file, or of LENGTH bytes from START. */

static long do_flock(void) { return flock(fd(1), bits(flock_operations, 2)); }
static long do_lock(void)
{
    struct flock lock = {.l_type = bits(lock_types, 3), .l_start = number(4), .l_len = number(5)};
    return fcntl(fd(1), bits(lock_commands, 2), &lock);
}

/* Mappings. */

static long do_map(void)
{
    struct label *mapping = label(words[1]);
    void *where = mmap(NULL, number(3), bits(protections, 4), MAP_SHARED, fd(2), 0);
    if (where == MAP_FAILED)
        return -1;
    mapping->map = where;
    mapping->size = number(3);
    return 0;
}
static long do_store(void) { return memcpy(label(words[1])->map + number(2), words[3], strlen(words[3])), 0; }
static long do_load(void) { return memcpy(room, label(words[1])->map + number(2), number(3)), number(3); }
static long do_msync(void) { return msync(label(words[1])->map, label(words[1])->size, MS_SYNC); }
static long do_unmap(void) { return munmap(label(words[1])->map, label(words[1])->size); }

/* Names. */

static long do_rename(void) { return syscall(SYS_renameat2, AT_FDCWD, words[1], AT_FDCWD, words[2], bits(rename_flags, 3)); }
static long do_link(void) { return link(words[1], words[2]); }
static long do_symlink(void) { return symlink(words[1], words[2]); }
static long do_readlink(void) { return readlink(words[1], room, ROOM); }
static long do_unlink(void) { return unlink(words[1]); }
static long do_mkdir(void) { return mkdir(words[1], strtol(words[2], NULL, 8)); }
static long do_rmdir(void) { return rmdir(words[1]); }
static long do_truncate(void) { return truncate(words[1], number(2)); }
static long do_chmod(void) { return chmod(words[1], strtol(words[2], NULL, 8)); }
static long do_chown(void) { return lchown(words[1], number(2), number(3)); }
static long do_changed(void)
{
    struct stat status;
    return lstat(words[1], &status) ? -1 : status.st_mtim.tv_sec * 1000000000 + status.st_mtim.tv_nsec;
}
static long do_birth(void)
{
    struct statx status;
    if (statx(AT_FDCWD, words[1], AT_SYMLINK_NOFOLLOW, STATX_BTIME, &status))
        return -1;
    if (!(status.stx_mask & STATX_BTIME))
        return errno = ENODATA, -1;
    return status.stx_btime.tv_sec * 1000000000 + status.stx_btime.tv_nsec;
}

/* Extended attributes. */

static long do_setxattr(void) { return lsetxattr(words[1], words[2], words[3], strlen(words[3]), bits(xattr_flags, 4)); }
static long do_getxattr(void) { return lgetxattr(words[1], words[2], room, ROOM); }
static long do_removexattr(void) { return lremovexattr(words[1], words[2]); }
static long do_listxattr(void) { return llistxattr(words[1], room, ROOM); }

/* Who we are: uid, gid, and supplementary groups joined by commas. */
static long do_user(void)
{
    gid_t groups[16];
    int count = 0;
    for (char *group = strtok(words[3], ","); group && count < 16; group = strtok(NULL, ","))
        groups[count++] = strtol(group, NULL, 0);
    if (setgroups(count, groups) || setresgid(number(2), number(2), number(2)))
        return -1;
    return setresuid(number(1), number(1), number(1));
}

static long do_wait(void)
{
    char answer[64];
    printf("? %s\n", words[1]);
    fflush(stdout);
    if (!fgets(answer, sizeof answer, stdin))
        usage("nobody answers", words[1]);
    return 0;
}

/* Directories: the names that one system call gives in SIZE bytes, or all of them, with a wait after each call. */

static long list_some(int directory, long size, long used)
{
    static _Alignas(8) char chunk[65536];
    struct dirent64 *entry;
    long got = getdents64(directory, chunk, size);
    if (got <= 0)
        return got ? -1 : used;
    for (long at = 0; at < got; at += entry->d_reclen) {
        entry = (void *)(chunk + at);
        used += snprintf(room + used, ROOM - used, "%s", entry->d_name) + 1;
    }
    return used;
}
static long do_next(void) { return list_some(fd(1), number(2), 0); }
static long do_walk(void)
{
    long used = 0, before = -1;
    int directory = open(words[1], O_RDONLY | O_DIRECTORY);
    if (directory < 0)
        return -1;
    words[1] = words[3];
    while (used != before && used < ROOM / 2) {
        before = used;
        used = list_some(directory, number(2), used);
        if (used < 0)
            return -1;
        if (*words[3])
            do_wait();
    }
    close(directory);
    return used;
}

/* Contents that need not travel: a file of SIZE bytes that follow from SEED, and a checksum where every bit counts. */

static uint64_t next(uint64_t value) { return value * 6364136223846793005 + 1442695040888963407; }

static long do_fill(void)
{
    uint64_t *numbers = (void *)room, state = number(3);
    long left = number(2);
    int file = open(words[1], O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (file < 0)
        return -1;
    for (long part; left > 0; left -= part) {
        part = left < ROOM ? left : ROOM;
        for (int i = 0; i < ROOM / 8; i++) {
            state = next(state);
            numbers[i] = state ^ state >> 32;
        }
        if (write(file, room, part) != part)
            return -1;
    }
    return fsync(file) || close(file) ? -1 : 0;
}

static long do_sum(void)
{
    uint64_t *numbers = (void *)room, sum = 0;
    long got, have = 0;
    int file = open(words[1], O_RDONLY);
    if (file < 0)
        return -1;
    do { /* by whole rooms, so that the sum does not depend on how long the reads are */
        got = read(file, room + have, ROOM - have);
        if (got < 0)
            return -1;
        have += got;
        if (have == ROOM || (!got && have)) {
            memset(room + have, 0, -have & 7);
            for (int i = 0; i < (have + 7) / 8; i++)
                sum = next(sum ^ numbers[i]), sum ^= sum >> 32;
            sum = next(sum + have);
            have = 0;
        }
    } while (got);
    close(file);
    return (long)(sum >> 1);
}

static const struct step {
    const char *name;
    int least; /* words after the name */
    long (*act)(void);
    char shows; /* n nothing, i a number, d bytes, l names that end with NUL */
} steps[] = {
    {"open", 3, do_open, 'n'},
    {"close", 1, do_close, 'n'},
    {"read", 2, do_read, 'd'},
    {"pread", 3, do_pread, 'd'},
    {"write", 2, do_write, 'i'},
    {"pwrite", 3, do_pwrite, 'i'},
    {"seek", 3, do_seek, 'i'},
    {"ftruncate", 2, do_ftruncate, 'n'},
    {"fallocate", 4, do_fallocate, 'n'},
    {"fsync", 1, do_fsync, 'n'},
    {"syncfs", 1, do_syncfs, 'n'},
    {"size", 1, do_fstat_size, 'i'},
    {"links", 1, do_fstat_links, 'i'},
    {"copy", 5, do_copy, 'i'},
    {"name", 2, do_name, 'n'},
    {"flock", 2, do_flock, 'n'},
    {"lock", 5, do_lock, 'n'},
    {"map", 4, do_map, 'n'},
    {"store", 3, do_store, 'n'},
    {"load", 3, do_load, 'd'},
    {"msync", 1, do_msync, 'n'},
    {"unmap", 1, do_unmap, 'n'},
    {"rename", 2, do_rename, 'n'},
    {"link", 2, do_link, 'n'},
    {"symlink", 2, do_symlink, 'n'},
    {"readlink", 1, do_readlink, 'd'},
    {"unlink", 1, do_unlink, 'n'},
    {"mkdir", 2, do_mkdir, 'n'},
    {"rmdir", 1, do_rmdir, 'n'},
    {"truncate", 2, do_truncate, 'n'},
    {"chmod", 2, do_chmod, 'n'},
    {"chown", 3, do_chown, 'n'},
    {"changed", 1, do_changed, 'i'},
    {"birth", 1, do_birth, 'i'},
    {"setxattr", 3, do_setxattr, 'n'},
    {"getxattr", 2, do_getxattr, 'd'},
    {"listxattr", 1, do_listxattr, 'l'},
    {"removexattr", 2, do_removexattr, 'n'},
    {"user", 2, do_user, 'n'},
    {"wait", 1, do_wait, 'n'},
    {"next", 2, do_next, 'l'},
    {"walk", 2, do_walk, 'l'},
    {"fill", 3, do_fill, 'n'},
    {"sum", 1, do_sum, 'i'},
    {NULL, 0, NULL, 0},
};

static void show(char what, long got)
{
    if (got == -1) {
        printf("! %s\n", strerrorname_np(errno));
        return;
    }
    if (what == 'n')
        printf("ok");
    else if (what == 'i')
        printf("= %ld", got);
    else if (what == 'd')
        printf(": ");
    else
        printf(",");
    for (long at = 0; what == 'l' && at < got; at++) {
        bool starts = !at || !room[at - 1];
        if (room[at])
            printf(starts ? " %02x" : "%02x", (unsigned char)room[at]);
    }
    for (long at = 0; what == 'd' && at < got; at++)
        printf("%02x", (unsigned char)room[at]);
    printf("\n");
}

int main(int count, char **arguments)
{
    umask(0);
    for (int at = 1; at < count; at++) {
        int have = 0;
        for (; at < count && strcmp(arguments[at], "--"); at++) {
            if (have == WORDS)
                usage("too many words", arguments[at]);
            words[have++] = arguments[at];
        }
        for (int rest = have; rest < WORDS; rest++)
            words[rest] = "";
        const struct step *step = steps;
        while (step->name && (!have || strcmp(step->name, words[0])))
            step++;
        if (!step->name || have - 1 < step->least)
            usage("no such step, or words are missing", words[0]);
        show(step->shows, step->act());
        fflush(stdout);
    }
    return 0;
}
