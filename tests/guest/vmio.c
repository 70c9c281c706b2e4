// SPDX-License-Identifier: Apache-2.0
// vmio: exactly so much direct I/O, and a line of JSON that says what was really issued.
//   vmio DEV read|write|readwrite|discard COUNT SIZE [depth=1] [order=seq|rand] [start=BYTES] [span=BYTES]
//        [flush_every=N] [seconds=S] [pause_us=U]
// COUNT 0 with seconds=S goes on until the time is over. depth > 1 keeps that many in flight (kernel AIO,
// O_DIRECT).
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { kMaxDepth = 256 };

struct options {
  const char* device;
  const char* op;
  uint64_t count, size, depth, start, span, flush_every, seconds, pause_us;
  int random;
};

struct tally {
  uint64_t reads, writes, flushes, discards, read_bytes, write_bytes, discard_bytes;
  uint64_t read_errors, write_errors, flush_errors, discard_errors;
};

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void die(const char* what) {
  fprintf(stderr, "vmio: %s: %s\n", what, strerror(errno));
  exit(2);
}

// Where request number n goes. Random order visits every second block of a window before any twice (an odd
// stride over a power of two), so that no two requests in flight are neighbours that a scheduler could merge.
static uint64_t place(const struct options* o, uint64_t n) {
  uint64_t blocks = o->span / o->size;
  if (!o->random) return o->start + (n % blocks) * o->size;
  uint64_t window = 1;
  while (window * 4 <= blocks) window *= 2;
  return o->start + ((n * 0x9E3779B1ULL) % window) * 2 * o->size;
}

static void account(struct tally* t, int is_write, uint64_t size, int64_t result) {
  const int bad = result != (int64_t)size;
  if (is_write) {
    t->writes++, t->write_bytes += size, t->write_errors += bad;
  } else {
    t->reads++, t->read_bytes += size, t->read_errors += bad;
  }
}

static void flush(int fd, struct tally* t) {
  t->flushes++;
  if (fdatasync(fd) != 0) t->flush_errors++;
}

static int finished(const struct options* o, uint64_t issued, double end) {
  return (o->count && issued >= o->count) || (end > 0 && now() >= end);
}

static void transfer(int fd, const struct options* o, struct tally* t) {
  aio_context_t context = 0;
  if (syscall(SYS_io_setup, o->depth, &context) != 0) die("io_setup");
  static struct iocb blocks[kMaxDepth];
  struct io_event events[kMaxDepth];
  uint64_t free_slots[kMaxDepth], free_count = o->depth;
  char* memory = NULL;
  if (posix_memalign((void**)&memory, 4096, o->size * o->depth) != 0) die("memory");
  for (uint64_t i = 0; i < o->size * o->depth; i += 8) *(uint64_t*)(memory + i) = i * 0x9E3779B97F4A7C15ULL;
  for (uint64_t i = 0; i < o->depth; i++) free_slots[i] = i;
  const int mixed = strcmp(o->op, "readwrite") == 0;
  const double end = o->seconds ? now() + (double)o->seconds : 0;
  uint64_t issued = 0;

  for (;;) {
    while (free_count > 0 && !finished(o, issued, end)) {
      const uint64_t slot = free_slots[--free_count];
      const int is_write = mixed ? (int)(issued & 1) : o->op[0] == 'w';
      struct iocb* block = &blocks[slot];
      memset(block, 0, sizeof *block);
      block->aio_fildes = (uint32_t)fd;
      block->aio_lio_opcode = is_write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
      block->aio_buf = (uint64_t)(uintptr_t)(memory + slot * o->size);
      block->aio_nbytes = o->size;
      block->aio_offset = (int64_t)place(o, mixed ? issued / 2 : issued);
      block->aio_data = slot;
      if (syscall(SYS_io_submit, context, 1L, &block) != 1) die("io_submit");
      issued++;
    }
    if (free_count == o->depth) break;
    const long got = syscall(SYS_io_getevents, context, 1L, (long)kMaxDepth, events, NULL);
    if (got < 0) die("io_getevents");
    for (long i = 0; i < got; i++) {
      const uint64_t slot = events[i].data;
      const int is_write = blocks[slot].aio_lio_opcode == IOCB_CMD_PWRITE;
      account(t, is_write, o->size, events[i].res);
      free_slots[free_count++] = slot;
      if (is_write && o->flush_every && t->writes % o->flush_every == 0) flush(fd, t);
    }
    if (o->pause_us) usleep((useconds_t)o->pause_us);
  }
  syscall(SYS_io_destroy, context);
  free(memory);
}

static void discard(int fd, const struct options* o, struct tally* t) {
  for (uint64_t n = 0; n < o->count; n++) {
    uint64_t range[2] = {place(o, n), o->size};
    t->discards++, t->discard_bytes += o->size;
    if (ioctl(fd, BLKDISCARD, range) != 0) t->discard_errors++;
  }
}

static uint64_t number(const char* text) {
  char* end = NULL;
  const uint64_t value = strtoull(text, &end, 10);
  const char* suffixes = "kMG";
  const char* suffix = *end ? strchr(suffixes, *end) : NULL;
  if (!suffix) return value;
  return value << (10 * (suffix - suffixes + 1));
}

int main(int argc, char** argv) {
  if (argc < 5) {
    fprintf(stderr, "usage: vmio DEV read|write|readwrite|discard COUNT SIZE [key=value ...]\n");
    return 2;
  }
  struct options o = {
      .device = argv[1], .op = argv[2], .count = number(argv[3]), .size = number(argv[4]), .depth = 1};
  for (int i = 5; i < argc; i++) {
    char* value = strchr(argv[i], '=');
    if (!value) return fprintf(stderr, "vmio: %s is not key=value\n", argv[i]), 2;
    *value++ = 0;
    if (strcmp(argv[i], "depth") == 0)
      o.depth = number(value);
    else if (strcmp(argv[i], "order") == 0)
      o.random = strcmp(value, "rand") == 0;
    else if (strcmp(argv[i], "start") == 0)
      o.start = number(value);
    else if (strcmp(argv[i], "span") == 0)
      o.span = number(value);
    else if (strcmp(argv[i], "flush_every") == 0)
      o.flush_every = number(value);
    else if (strcmp(argv[i], "seconds") == 0)
      o.seconds = number(value);
    else if (strcmp(argv[i], "pause_us") == 0)
      o.pause_us = number(value);
    else
      return fprintf(stderr, "vmio: unknown option %s\n", argv[i]), 2;
  }
  const int fd = open(o.device, O_RDWR | O_DIRECT | O_CLOEXEC);
  if (fd < 0) die(o.device);
  const uint64_t device_size = (uint64_t)lseek(fd, 0, SEEK_END);
  if (o.span == 0) o.span = device_size - o.start;
  if (o.depth < 1 || o.depth > kMaxDepth || o.size == 0 || o.span < o.size * 4 ||
      o.start + o.span > device_size || (o.count == 0 && o.seconds == 0)) {
    return fprintf(stderr, "vmio: impossible request (device of %llu bytes)\n",
                   (unsigned long long)device_size),
           2;
  }

  struct tally t = {0};
  const double begin = now();
  if (strcmp(o.op, "discard") == 0)
    discard(fd, &o, &t);
  else
    transfer(fd, &o, &t);
  printf(
      "{\"reads\": %llu, \"writes\": %llu, \"flushes\": %llu, \"discards\": %llu, \"read_bytes\": %llu, "
      "\"write_bytes\": %llu, \"discard_bytes\": %llu, \"read_errors\": %llu, \"write_errors\": %llu, "
      "\"flush_errors\": %llu, \"discard_errors\": %llu, \"seconds\": %.6f}\n",
      (unsigned long long)t.reads, (unsigned long long)t.writes, (unsigned long long)t.flushes,
      (unsigned long long)t.discards, (unsigned long long)t.read_bytes, (unsigned long long)t.write_bytes,
      (unsigned long long)t.discard_bytes, (unsigned long long)t.read_errors,
      (unsigned long long)t.write_errors, (unsigned long long)t.flush_errors,
      (unsigned long long)t.discard_errors, now() - begin);
  return 0;
}
