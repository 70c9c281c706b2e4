// SPDX-License-Identifier: Apache-2.0
// work kernel COUNT : has threads that the kernel makes (io_uring's workers) read that many MiB of zeros;
//                     prints the ns on a CPU of the whole process.
// work fault FILE   : reads a file that is not in memory through a mapping, a page at a time; prints how
// often it
//                     had to wait for storage.
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { kReadBytes = 1 << 20 };

static int kernel_threads(unsigned count) {
  struct io_uring_params params = {0};
  const int ring = (int)syscall(SYS_io_uring_setup, 8, &params);
  if (ring < 0) return perror("io_uring_setup"), 3;
  char* queue = mmap(NULL, params.sq_off.array + params.sq_entries * sizeof(unsigned), PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
  struct io_uring_sqe* entries = mmap(NULL, params.sq_entries * sizeof(*entries), PROT_READ | PROT_WRITE,
                                      MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
  char* completed = mmap(NULL, params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe),
                         PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_CQ_RING);
  char* buffer = malloc(kReadBytes);
  const int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
  if (queue == MAP_FAILED || (void*)entries == MAP_FAILED || completed == MAP_FAILED || !buffer || zero < 0)
    return 3;
  for (unsigned i = 0; i < count; i++) {
    struct io_uring_sqe* entry = &entries[0];
    memset(entry, 0, sizeof(*entry));
    entry->opcode = IORING_OP_READ;
    entry->flags = IOSQE_ASYNC;  // by a worker, always
    entry->fd = zero;
    entry->addr = (unsigned long)buffer;
    entry->len = kReadBytes;
    unsigned* tail = (unsigned*)(queue + params.sq_off.tail);
    ((unsigned*)(queue + params.sq_off.array))[*tail & (params.sq_entries - 1)] = 0;
    __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
      return perror("io_uring_enter"), 3;
    unsigned* head = (unsigned*)(completed + params.cq_off.head);
    __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
  }
  struct timespec used;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  printf("%lld\n", used.tv_sec * 1000000000LL + used.tv_nsec);
  return 0;
}

static int faults(const char* path) {
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  struct stat stat;
  if (file < 0 || fstat(file, &stat) || fsync(file)) return perror(path), 3;
  posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
  const char* bytes = mmap(NULL, (size_t)stat.st_size, PROT_READ, MAP_PRIVATE, file, 0);
  if (bytes == MAP_FAILED || madvise((void*)bytes, (size_t)stat.st_size, MADV_RANDOM)) return perror(path), 3;
  volatile char sum = 0;
  for (off_t at = 0; at < stat.st_size; at += 4096) sum ^= bytes[at];
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  printf("%ld\n", usage.ru_majflt);
  return 0;
}

int main(int argc, char** argv) {
  if (argc == 3 && strcmp(argv[1], "kernel") == 0) return kernel_threads((unsigned)atoi(argv[2]));
  if (argc == 3 && strcmp(argv[1], "fault") == 0) return faults(argv[2]);
  return fprintf(stderr, "usage: work kernel COUNT | fault FILE\n"), 2;
}
