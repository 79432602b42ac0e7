/* Makes file writes or syncs fail while the file that DISK_FAULT names exists. Its first letter selects the fault. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

static char fault(void) {
  const char *path = getenv("DISK_FAULT");
  char letter = 0;
  int saved = errno;
  int flag = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (flag >= 0) {
    if (read(flag, &letter, 1) != 1) letter = 0;
    close(flag);
  }
  errno = saved;
  return letter;
}

static int sync_fails(void) {
  if (fault() != 's') return 0;
  errno = EIO;
  return 1;
}

static int write_fails(void) {
  char letter = fault();
  if (letter != 'w' && letter != 'f') return 0;
  errno = letter == 'f' ? ENOSPC : EIO;
  return 1;
}

int fsync(int file) {
  static int (*real)(int);
  if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
  return sync_fails() ? -1 : real(file);
}

int fdatasync(int file) {
  static int (*real)(int);
  if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
  return sync_fails() ? -1 : real(file);
}

ssize_t pwrite(int file, const void *bytes, size_t size, off_t offset) {
  static ssize_t (*real)(int, const void *, size_t, off_t);
  if (!real) real = (ssize_t (*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite");
  return write_fails() ? -1 : real(file, bytes, size, offset);
}

ssize_t pwrite64(int file, const void *bytes, size_t size, off64_t offset) {
  static ssize_t (*real)(int, const void *, size_t, off64_t);
  if (!real) real = (ssize_t (*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64");
  return write_fails() ? -1 : real(file, bytes, size, offset);
}
