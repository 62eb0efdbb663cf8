/* Makes writes to files in one folder fail: LD_PRELOAD=failing_disk.so, and
 *   FAILING_DISK_FOLDER  files below it
 *   FAILING_DISK_FROM    the number of the first write that fails, counted from 1; 0: none
 *   FAILING_DISK_ERRNO   28 (ENOSPC, no space left) or 5 (EIO, input/output error)
 *   FAILING_DISK_COUNT   a file that holds the number of writes, in place of failing
 * ENOSPC lasts, as on a full disk; EIO fails one write.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static long number;

static int counts(int descriptor) {
  const char *folder = getenv("FAILING_DISK_FOLDER");
  char link[64], path[4096];
  if (!folder) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length <= 0) return 0;
  path[length] = 0;
  return strncmp(path, folder, strlen(folder)) == 0;
}

static int fails(int descriptor) {
  if (!counts(descriptor)) return 0;
  long present = __sync_add_and_fetch(&number, 1);
  const char *from = getenv("FAILING_DISK_FROM"), *code = getenv("FAILING_DISK_ERRNO");
  long first = from ? atol(from) : 0;
  int error = code ? atoi(code) : ENOSPC;
  if (first <= 0 || (error == ENOSPC ? present < first : present != first)) return 0;
  errno = error;
  return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int descriptor, const void *data, size_t size) {
  return fails(descriptor) ? -1 : REAL(write)(descriptor, data, size);
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t place) {
  return fails(descriptor) ? -1 : REAL(pwrite)(descriptor, data, size, place);
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t place) {
  return fails(descriptor) ? -1 : REAL(pwrite64)(descriptor, data, size, place);
}

ssize_t writev(int descriptor, const struct iovec *parts, int count) {
  return fails(descriptor) ? -1 : REAL(writev)(descriptor, parts, count);
}

int fsync(int descriptor) { return fails(descriptor) ? -1 : REAL(fsync)(descriptor); }

int fdatasync(int descriptor) { return fails(descriptor) ? -1 : REAL(fdatasync)(descriptor); }

__attribute__((destructor)) static void report(void) {
  const char *path = getenv("FAILING_DISK_COUNT");
  FILE *file = path && number ? fopen(path, "w") : NULL;
  if (!file) return;
  fprintf(file, "%ld\n", number);
  fclose(file);
}
